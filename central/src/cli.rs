//! The people's command, `tapio`: asks central's REST API and shows the answer as a table, a story or JSON.

pub mod client;
pub mod doctor;
mod events;
pub mod render;

use std::{io::Write, path::PathBuf};

use clap::{CommandFactory, Parser, Subcommand};
use tapio_schemas::{finding::Finding, units::UnixMicros};
use time::OffsetDateTime;

use self::client::{ApiClient, ClientError};
use crate::{
    api::rest::{health::HealthAnswer, ledger::LedgerAnswer, page::List},
    history::{clusters::StoredCluster, nodes::StoredNode},
};

/// Tapio: the root cause of a failure, and its proof.
#[derive(Debug, Parser)]
#[command(name = "tapio", version)]
pub struct Arguments {
    /// Where central's API is.
    #[arg(long, global = true, env = "TAPIO_API", default_value = "https://127.0.0.1:7443")]
    api: String,
    /// The certificate authority of central's certificate, PEM. Without it, public authorities count.
    #[arg(long, global = true, env = "TAPIO_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print the API's JSON instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List findings, newest first.
    Findings {
        /// Only those in this state: open, resolved, superseded.
        #[arg(long)]
        state: Option<String>,
        /// Only of this cluster.
        #[arg(long)]
        cluster: Option<String>,
        /// Announced since: a time (RFC 3339) or a length before now (15m, 2h, 7d).
        #[arg(long, default_value = "24h")]
        since: String,
        /// At most this many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Show one finding: its chain, its evidence, what is missing, what was lost.
    Explain {
        /// Its id, or enough of its beginning.
        #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Show events, the newest last.
    Events(events::EventArguments),
    /// List nodes: whether they are heard, what works there, what was lost.
    Nodes {
        /// Only of this cluster.
        #[arg(long)]
        cluster: Option<String>,
        /// Only those in this state: live, silent.
        #[arg(long)]
        state: Option<String>,
        /// Heard, and losses counted, since: a time (RFC 3339) or a length before now (15m, 2h, 7d).
        #[arg(long, default_value = "24h")]
        since: String,
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show in one screen whether to trust the system now.
    Status,
    /// Show what this host allows an agent, what is missing, why, and what to do; exits with 1 if anything is.
    Doctor(doctor::DoctorArguments),
    /// Print the completions of a shell; its documentation says where they belong.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Runs the command and writes its answer to `out`.
///
/// # Errors
/// When the API does not answer or refuses, or `out` cannot be written.
pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), ClientError> {
    let client = || ApiClient::new(&arguments.api, arguments.ca.as_deref());
    let now = now();
    match &arguments.command {
        Command::Findings { state, cluster, since, limit } => {
            let limit = limit.to_string();
            let mut query = vec![("since", since.as_str()), ("limit", &limit)];
            query.extend(state.as_deref().map(|state| ("state", state)));
            query.extend(cluster.as_deref().map(|cluster| ("cluster", cluster)));
            show(arguments.json, out, &client()?.get::<List<Finding>>("/findings", &query)?, |list, out| {
                render::findings(list, now, out)
            })
        }
        Command::Explain { id } => {
            let finding =
                client()?.get::<Finding>(&format!("/findings/{}", client::path_segment(id)), &[])?;
            show(arguments.json, out, &finding, |finding, out| render::explain(finding, now, out))
        }
        Command::Events(events) => events::run(events, arguments.json, &client()?, out),
        Command::Nodes { cluster, state, since, limit } => {
            let limit = limit.to_string();
            let mut query = vec![("since", since.as_str()), ("limit", &limit)];
            query.extend(cluster.as_deref().map(|cluster| ("cluster", cluster)));
            query.extend(state.as_deref().map(|state| ("state", state)));
            let list = client()?.get::<List<StoredNode>>("/nodes", &query)?;
            show(arguments.json, out, &list, |list, out| render::nodes::list(list, now, out))
        }
        Command::Doctor(asked) => {
            let diagnosis = doctor::examine(asked);
            show(arguments.json, out, &diagnosis, doctor::render)?;
            if diagnosis.fit { Ok(()) } else { Err(ClientError::Unfit) }
        }
        Command::Completions { shell } => completions(*shell, out),
        Command::Status => {
            let client = client()?;
            let health = client.get::<HealthAnswer>("/health", &[])?;
            // Health says that the store does not answer; the rest is then empty, and the answer is no.
            let ledger = unless_failed(client.get::<LedgerAnswer>("/ledger", &[("since", "5m")]))?;
            let open = [("state", "open"), ("since", "24h")];
            let open = unless_failed(client.get::<List<Finding>>("/findings", &open))?;
            let clusters =
                unless_failed(client.get::<List<StoredCluster>>("/clusters", &[("since", "24h")]))?;
            let status = render::status::Status::judged(
                health,
                clusters.map(|list| list.items).unwrap_or_default(),
                ledger.unwrap_or_default(),
                open.map(|list| list.items).unwrap_or_default(),
                now,
            );
            show(arguments.json, out, &status, |status, out| render::status::status(status, now, out))
        }
    }
}

/// What the API answered; nothing where it says that it cannot answer now.
fn unless_failed<T>(answer: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(ClientError::Refused(problem)) if problem.status >= 500 => Ok(None),
        Err(error) => Err(error),
    }
}

fn completions(shell: clap_complete::Shell, out: &mut dyn Write) -> Result<(), ClientError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tapio", &mut text);
    out.write_all(&text).map_err(ClientError::Write)
}

fn show<T: serde::Serialize>(
    json: bool,
    out: &mut dyn Write,
    answer: &T,
    render: impl Fn(&T, &mut dyn Write) -> std::io::Result<()>,
) -> Result<(), ClientError> {
    let written = if json {
        serde_json::to_writer_pretty(&mut *out, answer)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let mut text = Vec::new();
        render(answer, &mut text).and_then(|()| out.write_all(printable(&text).as_bytes()))
    };
    written.map_err(ClientError::Write)
}

/// `text` without what would steer a terminal: titles and reasons carry names that any observed program may choose.
fn printable(text: &[u8]) -> String {
    let shown =
        |character: char| if character.is_control() && character != '\n' { '\u{fffd}' } else { character };
    String::from_utf8_lossy(text).chars().map(shown).collect()
}

fn now() -> UnixMicros {
    UnixMicros(u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a title in which a program put the sequences that clear a screen and set its title.
    /// Guarantees: they are shown as damage, the rest unchanged.
    #[test]
    fn a_terminal_is_not_steered() {
        let text = "a\u{1b}[2J\u{9b}1m\r\n→ ä\u{7}";
        assert_eq!(printable(text.as_bytes()), "a\u{fffd}[2J\u{fffd}1m\u{fffd}\n→ ä\u{fffd}");
    }
}
