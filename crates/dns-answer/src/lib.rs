//! A DNS question and the catalog's answer make records.
