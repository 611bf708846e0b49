//! Options from three places: flag beats environment beats file beats default.
//!
//! The file is TOML with one table per command (`[up]`, `[node.run]`), whose keys are the long options with
//! underscores, and the options of every command (`json`, `log`) at the top. It becomes clap's defaults before the
//! command line is parsed, so all three are checked by the same parsers and shown by the same `--help`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::OsStr;
use clap::{Arg, ArgAction, Command};
use serde::Serialize;

/// The file named by `--config` or `HOLDFAST_CONFIG`, before anything else is parsed.
pub(crate) fn config_path(arguments: &[std::ffi::OsString]) -> Option<PathBuf> {
    let mut arguments = arguments.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            return arguments.next().map(PathBuf::from);
        }
        if let Some(path) = argument.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(PathBuf::from(path));
        }
    }
    std::env::var_os("HOLDFAST_CONFIG").map(PathBuf::from)
}

/// Reads a configuration file.
pub(crate) fn read_file(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    text.parse::<toml::Table>().with_context(|| format!("{} is not valid TOML", path.display()))
}

/// Makes the file's values the defaults of `command`. Unknown keys are errors: a misspelt option must not pass.
pub(crate) fn apply_file(mut command: Command, table: &toml::Table, path: &str) -> Result<Command> {
    for (key, value) in table {
        let shown = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if let toml::Value::Table(inner) = value {
            let name = key.replace('_', "-");
            if command.find_subcommand(&name).is_none() {
                bail!("the configuration file has a table [{shown}], but there is no such command");
            }
            let mut failed = None;
            command = command.mut_subcommand(name, |sub| match apply_file(sub.clone(), inner, &shown) {
                Ok(applied) => applied,
                Err(error) => {
                    failed = Some(error);
                    sub
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
            continue;
        }
        let id = key.replace('-', "_");
        if !command.get_arguments().any(|argument| argument.get_id() == id.as_str()) {
            bail!(
                "the configuration file sets `{shown}`, but there is no such option; see `holdfast config show`"
            );
        }
        let values = values_of(value, &shown)?;
        command = command.mut_arg(id, |argument| argument.default_values(values));
    }
    Ok(command)
}

fn values_of(value: &toml::Value, shown: &str) -> Result<Vec<OsStr>> {
    let one = |value: &toml::Value| -> Result<OsStr> {
        match value {
            toml::Value::String(text) => Ok(text.clone().into()),
            toml::Value::Integer(number) => Ok(number.to_string().into()),
            toml::Value::Float(number) => Ok(number.to_string().into()),
            toml::Value::Boolean(flag) => Ok(flag.to_string().into()),
            _ => bail!("the configuration file gives `{shown}` a value of a kind that no option takes"),
        }
    };
    match value {
        toml::Value::Array(items) => items.iter().map(one).collect(),
        other => Ok(vec![one(other)?]),
    }
}

/// One option as it stands before flags.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    /// The command, `node run`; empty for options of every command.
    pub(crate) command: String,
    /// The option, without dashes in front.
    pub(crate) option: String,
    /// Its value, if it has one.
    pub(crate) value: Option<String>,
    /// `environment HOLDFAST_…`, `file`, `default` or `unset`.
    pub(crate) source: String,
}

/// Every option of every command, with its value and source.
pub(crate) fn list(command: &Command, file: &toml::Table) -> Vec<Setting> {
    let mut settings = Vec::new();
    collect(command, file, String::new(), &mut settings);
    settings
}

fn collect(command: &Command, table: &toml::Table, path: String, into: &mut Vec<Setting>) {
    for argument in command.get_arguments().filter(|argument| shown(argument)) {
        let key = argument.get_id().as_str();
        let in_file = table.contains_key(key) || table.contains_key(&key.replace('_', "-"));
        let environment = argument
            .get_env()
            .and_then(|name| std::env::var(name).ok().map(|value| (name.to_owned(), value)));
        let default: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect();
        let (value, source) = match environment {
            Some((name, value)) => (Some(value), format!("environment {}", name.to_string_lossy())),
            None if in_file => (Some(default.join(",")), "file".to_owned()),
            None if !default.is_empty() => (Some(default.join(",")), "default".to_owned()),
            None => (None, "unset".to_owned()),
        };
        let value = value.map(without_password);
        into.push(Setting { command: path.clone(), option: key.replace('_', "-"), value, source });
    }
    let empty = toml::Table::new();
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let inner = table.get(sub.get_name()).and_then(toml::Value::as_table).unwrap_or(&empty);
        let path =
            if path.is_empty() { sub.get_name().to_owned() } else { format!("{path} {}", sub.get_name()) };
        collect(sub, inner, path, into);
    }
}

/// A URL with its user and password taken out; anything else as it is.
fn without_password(value: String) -> String {
    let Some((scheme, rest)) = value.split_once("://") else { return value };
    match rest.rsplit_once('@') {
        Some((_, place)) => format!("{scheme}://…@{place}"),
        None => value,
    }
}

fn shown(argument: &Arg) -> bool {
    !argument.is_hide_set()
        && argument.get_long().is_some()
        && !matches!(argument.get_action(), ArgAction::Help | ArgAction::Version)
        && argument.get_id() != "config"
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::args::{Cli, Command as What};

    fn parse(file: &str, arguments: &[&str]) -> Result<Cli> {
        let table: toml::Table = file.parse()?;
        let command = apply_file(Cli::command(), &table, "")?;
        Ok(Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)?)
    }

    #[test]
    fn the_file_gives_defaults_and_flags_beat_it() -> Result<()> {
        let file = "[up]\nnodes = 9\nseparate_nodes = true\npolicy = \"small\"\n";
        let cli = parse(file, &["holdfast", "up", "--policy", "local"])?;
        let What::Up(up) = cli.command else { bail!("parsed another command") };
        assert_eq!(up.nodes, 9);
        assert!(up.separate_nodes);
        assert_eq!(up.policy, holdfast_protocol::record::PolicyName::Local);
        Ok(())
    }

    #[test]
    fn a_misspelt_option_in_the_file_is_named() {
        let error = parse("[up]\nnoodles = 3\n", &["holdfast", "up"]).expect_err("no such option");
        assert!(error.to_string().contains("up.noodles"), "{error}");
        let error = parse("[upp]\nnodes = 3\n", &["holdfast", "up"]).expect_err("no such command");
        assert!(error.to_string().contains("[upp]"), "{error}");
    }

    #[test]
    fn passwords_in_urls_are_not_shown() {
        assert_eq!(without_password("postgres://me:s3cr@t@db:5432/h".to_owned()), "postgres://…@db:5432/h");
        assert_eq!(without_password("http://gateway:8080".to_owned()), "http://gateway:8080");
    }

    #[test]
    fn the_list_says_where_each_value_came_from() -> Result<()> {
        let table: toml::Table = "[up]\nnodes = 9\n".parse()?;
        let command = apply_file(Cli::command(), &table, "")?;
        let settings = list(&command, &table);
        let of = |option: &str| {
            settings.iter().find(|setting| setting.command == "up" && setting.option == option)
        };
        assert_eq!(of("nodes").map(|setting| setting.source.as_str()), Some("file"));
        assert_eq!(of("policy").map(|setting| setting.source.as_str()), Some("default"));
        assert_eq!(of("capacity").map(|setting| setting.source.as_str()), Some("unset"));
        Ok(())
    }
}
