//! Command lines of the tools: words, `--name value` options and bare `--flags`.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

/// Runs a tool. What goes wrong is told in a sentence, also where nobody can read it: a closed pipe is no panic.
pub(crate) fn run(tool: &str, usage: &str, body: impl FnOnce() -> Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    let wants_help = std::env::args().skip(1).any(|word| word == "--help" || word == "-h");
    let done = if wants_help {
        let told = writeln!(std::io::stdout(), "{usage}");
        told.map(|()| ExitCode::SUCCESS).map_err(Into::into)
    } else {
        body()
    };
    done.unwrap_or_else(|error| {
        writeln!(std::io::stderr(), "{tool}: {error}").ok();
        ExitCode::FAILURE
    })
}

/// The words and options of a command line.
pub(crate) struct Args {
    words: Vec<String>,
    options: Vec<(String, Option<String>)>,
}

impl Args {
    /// Reads the process's own. Names of `flags` take no value, those of `options` one; any other is refused.
    pub(crate) fn read(flags: &[&str], options: &[&str], usage: &str) -> Result<Self, String> {
        let known = options;
        let (mut words, mut options) = (Vec::new(), Vec::new());
        let mut given = std::env::args().skip(1);
        while let Some(word) = given.next() {
            match word.strip_prefix("--") {
                Some(name) if flags.contains(&name) => options.push((name.to_owned(), None)),
                Some(name) if !known.contains(&name) => return Err(format!("there is no option --{name}\n{usage}")),
                Some(name) => {
                    let value = given.next().ok_or_else(|| format!("--{name} needs a value"))?;
                    options.push((name.to_owned(), Some(value)));
                }
                None => words.push(word),
            }
        }
        Ok(Self { words, options })
    }

    /// The words that are no options.
    pub(crate) fn words(&self) -> &[String] {
        &self.words
    }

    /// Whether a flag was given.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.options.iter().any(|(given, _)| given == name)
    }

    /// Every value of an option.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.options.iter().filter(move |(given, _)| given == name).filter_map(|(_, value)| value.as_deref())
    }

    /// The last value of an option, parsed.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let last = self.all(name).last();
        last.map(|value| value.parse().map_err(|_| format!("--{name} needs a number, not {value:?}"))).transpose()
    }
}
