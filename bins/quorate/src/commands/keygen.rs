//! `keygen`.

use super::Context;
use crate::report::Report;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_rt::Rt as _;
use rand_core::Rng as _;

/// An AES-256 key for the gossip keyring.
const KEY_LEN_BYTES: usize = 32;

pub async fn run(context: &Context) -> Result<Report, Report> {
    let mut key = [0; KEY_LEN_BYTES];
    context.rt.rng("keygen").fill_bytes(&mut key);
    Ok(Report::line(STANDARD.encode(key)))
}
