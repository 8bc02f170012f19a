//! UDP and TCP around dns-answer.
