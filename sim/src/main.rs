//! Runs the simulator: see the library.

use std::process::ExitCode;

#[cfg(not(madsim))]
fn main() -> ExitCode {
    eprintln!("built without --cfg madsim; run it with `cargo xtask sim`");
    ExitCode::from(2)
}

#[cfg(madsim)]
fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(madsim)]
fn run(arguments: Vec<String>) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let mut arguments = arguments.into_iter();
    let command = arguments.next();
    if command.as_deref() != Some("self-check") {
        anyhow::bail!("usage: quorate-sim self-check [--seed N] [--trace NODE]...");
    }
    let mut seed = 0;
    let mut traced = Vec::new();
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--seed" => seed = value.parse().with_context(|| format!("--seed {value}"))?,
            "--trace" => traced.push(value),
            _ => anyhow::bail!("{flag}: no such flag"),
        }
    }
    let digest = quorate_sim::self_check::run(seed, &traced)?;
    println!("digest={digest:016x}");
    Ok(())
}
