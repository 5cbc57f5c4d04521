//! The people's command, `tapio`: asks central's REST API and shows the answer as a table, a story or JSON.

pub mod client;
pub mod doctor;
mod events;
pub mod render;
pub mod replay;
pub mod terminal;
mod unknown;

use std::{io::Write, path::PathBuf};

use clap::{
    CommandFactory, Parser, Subcommand,
    builder::{OsStringValueParser, TypedValueParser},
};
use serde::{Serialize, de::DeserializeOwned};
use tapio_schemas::{finding::Finding, units::UnixMicros};
use time::OffsetDateTime;

use self::{
    client::{ApiClient, ClientError},
    replay::ReplayFailure,
    unknown::Asked,
};
use crate::{
    api::rest::{
        page::List,
        status::{StatusAnswer, Trust},
    },
    history::nodes::StoredNode,
};

/// Tapio: the root cause of a failure, and its proof.
#[derive(Debug, Parser)]
#[command(
    name = "tapio",
    version,
    after_help = "Exit status: 0 answered; 1 no answer, or a refusal, or doctor finds something missing; 2 wrong options. \
    replay has its own: tapio replay --help."
)]
pub struct Arguments {
    /// Where central's API is.
    #[arg(long, global = true, env = "TAPIO_API", default_value = "https://127.0.0.1:7443")]
    api: String,
    /// The certificate authority of central's certificate, PEM. Without it, public authorities count.
    #[arg(long, global = true, env = "TAPIO_CA", value_name = "FILE", value_parser = file_or_none())]
    ca: Option<PathBuf>,
    /// Print the API's JSON instead of a table. What would steer a terminal is escaped in its strings, but for replay,
    /// which prints the bytes as they were announced.
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
        /// Only with this name.
        #[arg(long)]
        node: Option<String>,
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
    /// Tell the engine again what an aggregator recorded: the same findings, byte for byte, or those of other rules.
    Replay(replay::ReplayArguments),
    /// Show in one screen whether to trust the system now; exits with 1 if the answer is no.
    Status,
    /// Show what this host allows an agent, what is missing, why, and what to do; exits with 1 if anything is.
    Doctor(doctor::DoctorArguments),
    /// Print the completions of a shell; its documentation says where they belong.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// There is no answer of the API.
    #[error(transparent)]
    Api(#[from] ClientError),
    /// A replay failed.
    #[error(transparent)]
    Replay(#[from] ReplayFailure),
}

impl CommandError {
    /// The exit status of the process.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Api(error) => error.exit_status(),
            Self::Replay(failure) => failure.exit_status(),
        }
    }

    /// Whether the reader of a pipe went away, as `tapio findings | head` does.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Api(ClientError::Write(error)) | Self::Replay(ReplayFailure::Write(error)) => {
                error.kind() == std::io::ErrorKind::BrokenPipe
            }
            _ => false,
        }
    }
}

/// Runs the command and writes its answer to `out`.
///
/// # Errors
/// When the API does not answer or refuses, a replay fails, or `out` cannot be written.
pub fn run(arguments: &Arguments, out: &mut dyn Write) -> Result<(), CommandError> {
    // An empty variable is none.
    let authority = arguments.ca.as_deref().filter(|path| !path.as_os_str().is_empty());
    let client = || ApiClient::new(&arguments.api, authority);
    let now = now();
    let answered = match &arguments.command {
        Command::Findings { state, cluster, since, limit } => {
            let limit = limit.to_string();
            let mut query = vec![("since", since.as_str()), ("limit", &limit)];
            query.extend(state.as_deref().map(|state| ("state", state)));
            query.extend(cluster.as_deref().map(|cluster| ("cluster", cluster)));
            let client = client()?;
            let list = client.get::<List<Finding>>("/findings", &query)?;
            let asked = Asked { cluster: cluster.as_deref(), ..Asked::default() };
            asked.explain_empty(list.items.is_empty(), &client);
            show(arguments.json, out, &list, |list, out| render::findings(list, now, out))
        }
        Command::Explain { id } => {
            let finding =
                client()?.get::<Finding>(&format!("/findings/{}", client::path_segment(id)), &[])?;
            show(arguments.json, out, &finding, render::explain)
        }
        Command::Events(events) => events::run(events, arguments.json, &client()?, out),
        Command::Nodes { cluster, node, state, since, limit } => {
            let limit = limit.to_string();
            let mut query = vec![("since", since.as_str()), ("limit", &limit)];
            query.extend(cluster.as_deref().map(|cluster| ("cluster", cluster)));
            query.extend(node.as_deref().map(|node| ("node", node)));
            query.extend(state.as_deref().map(|state| ("state", state)));
            let client = client()?;
            let list = client.get::<List<StoredNode>>("/nodes", &query)?;
            let asked = Asked { cluster: cluster.as_deref(), node: node.as_deref(), ..Asked::default() };
            asked.explain_empty(list.items.is_empty(), &client);
            show(arguments.json, out, &list, |list, out| render::nodes::list(list, now, out))
        }
        Command::Doctor(asked) => {
            let diagnosis = doctor::examine(asked);
            show(arguments.json, out, &diagnosis, doctor::render)?;
            if diagnosis.fit { Ok(()) } else { Err(ClientError::Unfit) }
        }
        Command::Completions { shell } => completions(*shell, out),
        Command::Replay(replay) => return Ok(replay::run(replay, arguments.json, out)?),
        Command::Status => {
            let status = client()?.get::<StatusAnswer>("/status", &[])?;
            show(arguments.json, out, &status, render::status::status)?;
            if status.trust == Trust::No { Err(ClientError::NoTrust) } else { Ok(()) }
        }
    };
    Ok(answered?)
}

fn file_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

fn completions(shell: clap_complete::Shell, out: &mut dyn Write) -> Result<(), ClientError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "tapio", &mut text);
    out.write_all(&text).map_err(ClientError::Write)
}

fn show<T: Clone + Serialize + DeserializeOwned>(
    json: bool,
    out: &mut dyn Write,
    answer: &T,
    render: impl Fn(&T, &mut dyn Write) -> std::io::Result<()>,
) -> Result<(), ClientError> {
    let text = if json {
        serde_json::to_string_pretty(answer).map(|text| terminal::json(&text) + "\n").map_err(Into::into)
    } else {
        let mut text = Vec::new();
        render(&terminal::plain(answer), &mut text)
            .map(|()| terminal::printable(&String::from_utf8_lossy(&text)))
    };
    let written = text.and_then(|text| out.write_all(text.as_bytes()));
    written.map_err(ClientError::Write)
}

fn now() -> UnixMicros {
    UnixMicros(u64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000).unwrap_or_default())
}
