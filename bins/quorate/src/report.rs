//! What a command ends with: its output, its complaints, its exit code.

use std::io::Write as _;
use std::process::ExitCode;

/// The end of a command. Built whole before anything is printed, so that a command can be tested without a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub code: u8,
}

impl Report {
    /// Success, with a text that ends its own lines.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            stdout: text.into().into_bytes(),
            ..Self::default()
        }
    }
    /// Success, with one line.
    pub fn line(line: impl AsRef<str>) -> Self {
        Self::text(format!("{}\n", line.as_ref()))
    }
    /// Failure with exit code 1 and one line of explanation.
    pub fn failure(line: impl AsRef<str>) -> Self {
        Self {
            stderr: format!("{}\n", line.as_ref()),
            code: 1,
            ..Self::default()
        }
    }
    pub fn add_line(&mut self, line: impl AsRef<str>) {
        self.stdout.extend_from_slice(line.as_ref().as_bytes());
        self.stdout.push(b'\n');
    }
    pub fn add_failure(&mut self, line: impl AsRef<str>) {
        self.stderr.push_str(line.as_ref());
        self.stderr.push('\n');
        self.code = 1;
    }
    /// What is worth knowing and no failure: the exit code stays.
    pub fn add_warning(&mut self, line: impl AsRef<str>) {
        self.stderr.push_str(line.as_ref());
        self.stderr.push('\n');
    }
    /// Prints it. Whoever closed the other end of our output does not want the rest, which is no error.
    pub fn print(self) -> ExitCode {
        let _ = std::io::stdout()
            .write_all(&self.stdout)
            .and_then(|()| std::io::stdout().flush());
        let _ = std::io::stderr().write_all(self.stderr.as_bytes());
        ExitCode::from(self.code)
    }
}

/// A command's early end: `?` on a text is a failure with that line.
impl From<String> for Report {
    fn from(line: String) -> Self {
        Self::failure(line)
    }
}
