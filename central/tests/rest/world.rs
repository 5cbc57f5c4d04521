//! One engine and one central, and ways to ask it.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::de::DeserializeOwned;
use tapio_central::{
    CentralError,
    api::rest::{page::List, problem::Problem},
    cli::client::ApiClient,
    config::Config,
};
use tapio_identity::issuer::{Authority, Host};
use tapio_schemas::units::UnixMicros;
use tapio_store::{
    client::{BlockWriter, DeduplicationToken, ReadLimits, Reader},
    engine::{EmbeddedEngine, EngineConfig, find_library},
    native::EncodedBlock,
};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(3_600);
/// No answer here takes longer unless something hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// Parameters of a request.
pub(crate) type Query<'a> = &'a [(&'a str, &'a str)];

/// A running engine with the schema, and a central that reads it.
pub(crate) struct World {
    /// The client that `tapio` uses.
    pub(crate) api: ApiClient,
    /// `https://127.0.0.1:port`.
    pub(crate) base: String,
    /// The authority that signed central's certificate.
    pub(crate) authority: PathBuf,
    agent: Agent,
    central_stop: CancellationToken,
    central: JoinHandle<Result<(), CentralError>>,
    engine: Option<EmbeddedEngine>,
    inserted: u64,
    runtime: Runtime,
    directory: tempfile::TempDir,
}

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_type: String,
    pub(crate) allow: String,
    pub(crate) etag: String,
    pub(crate) request_id: String,
    pub(crate) policy: String,
    pub(crate) body: String,
}

impl World {
    /// A world of its own, or `None` where the engine may be missing and is.
    pub(crate) fn start() -> Option<Self> {
        let library = match find_library() {
            Ok(library) => library,
            Err(error) => {
                let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
                assert!(allowed.split(',').any(|name| name.trim() == "clickhouse"), "{error}");
                println!("not proven: clickhouse: {error}");
                return None;
            }
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("engine");
        let engine =
            runtime.block_on(EmbeddedEngine::start(EngineConfig::with_library(state, library))).unwrap();
        let writer = Reader::new(&engine.writer_endpoint().unwrap(), ReadLimits::default());
        runtime.block_on(tapio_store::migrations::migrate(&writer)).unwrap();
        write_connection(directory.path(), &engine);

        let authority = write_keys(directory.path());
        let config = write_config(directory.path());
        let (central_stop, (ready, listens)) = (CancellationToken::new(), oneshot::channel());
        let central = runtime.spawn(tapio_central::run(
            Config::load(&config).unwrap(),
            central_stop.clone(),
            |running| ready.send(running).unwrap(),
        ));
        let base = format!("https://{}", runtime.block_on(listens).unwrap().api);
        Some(Self {
            api: ApiClient::new(&base, Some(&authority)).unwrap(),
            base,
            agent: agent(&authority),
            authority,
            central_stop,
            central,
            engine: Some(engine),
            inserted: 0,
            runtime,
            directory,
        })
    }

    /// Everything that this world keeps on the disk.
    pub(crate) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Inserts a block as the aggregator does.
    pub(crate) fn insert(&mut self, table: &str, block: &EncodedBlock) {
        self.inserted += 1;
        let token = DeduplicationToken::new(format!("block-{}", self.inserted)).unwrap();
        let endpoint = self.engine.as_ref().unwrap().writer_endpoint().unwrap();
        self.runtime.block_on(BlockWriter::new(endpoint, DEADLINE).insert(table, block, &token)).unwrap();
    }

    /// The only cell of an SQL answer.
    pub(crate) fn number(&self, expression: &str) -> u64 {
        let endpoint = self.engine.as_ref().unwrap().reader_endpoint().unwrap();
        let reader = Reader::new(&endpoint, ReadLimits::default());
        let statement = format!("SELECT {expression} AS number");
        let rows: Vec<serde_json::Value> = self.runtime.block_on(reader.rows(&statement, &[])).unwrap();
        rows[0]["number"].as_u64().unwrap()
    }

    pub(crate) fn stop_engine(&mut self) {
        self.runtime.block_on(self.engine.take().unwrap().stop()).unwrap();
    }

    /// The same data, on other ports.
    pub(crate) fn start_engine(&mut self) {
        let config = EngineConfig::new(self.directory.path().join("engine")).unwrap();
        let engine = self.runtime.block_on(EmbeddedEngine::start(config)).unwrap();
        write_connection(self.directory.path(), &engine);
        self.engine = Some(engine);
    }

    /// The file that tells central where the store is.
    pub(crate) fn connection_file(&self) -> PathBuf {
        connection_file(self.directory.path())
    }

    /// Writes the connection file anew, with what is in it.
    pub(crate) fn touch_connection(&self) {
        write_connection(self.directory.path(), self.engine.as_ref().unwrap());
    }

    /// A statement with the rights of the aggregator.
    pub(crate) fn execute(&self, statement: &str) {
        let endpoint = self.engine.as_ref().unwrap().writer_endpoint().unwrap();
        let writer = Reader::new(&endpoint, ReadLimits::default());
        self.runtime.block_on(writer.execute(statement, &[])).unwrap();
    }

    /// Asks central to end and gives what it says.
    pub(crate) fn stop_central(&mut self) -> Result<(), CentralError> {
        self.central_stop.cancel();
        self.runtime.block_on(&mut self.central).unwrap()
    }

    /// The answer to any request; `path` is everything behind the port, escaped already.
    pub(crate) fn ask(&self, method: &str, path: &str) -> Answer {
        self.ask_with(method, path, &[])
    }

    /// As [`World::ask`], with headers of its own.
    pub(crate) fn ask_with(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !matches!(method, "GET" | "HEAD") {
            // What is refused before its body was read ends its connection: the next request must not be sent on it.
            request = request.header("connection", "close");
        }
        let request = request.body(()).unwrap();
        let mut response = self.agent.run(request).unwrap();
        let header = |name| {
            let value = response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
            value.unwrap_or_default()
        };
        let (content_type, allow) = (header("content-type"), header("allow"));
        let (etag, request_id) = (header("etag"), header("x-request-id"));
        let policy = header("content-security-policy");
        let status = response.status().as_u16();
        Answer {
            status,
            content_type,
            allow,
            etag,
            request_id,
            policy,
            body: response.body_mut().read_to_string().unwrap(),
        }
    }

    /// The problem with which a GET of `path` under `/api/v1` is refused.
    pub(crate) fn refused(&self, path: &str) -> Problem {
        let answer = self.ask("GET", &format!("/api/v1{path}"));
        problem(&answer, path)
    }

    /// The items of one page.
    pub(crate) fn items<T: DeserializeOwned>(&self, path: &str, query: Query<'_>) -> Vec<T> {
        let list: List<T> = self.api.get(path, query).unwrap();
        list.items
    }

    /// All items of a list, page by page; `between` is called before the second to the fifth page, with its number: a
    /// list to which older items come for ever has no end.
    pub(crate) fn walk<T: DeserializeOwned>(
        &mut self,
        path: &str,
        query: Query<'_>,
        limit: usize,
        mut between: impl FnMut(&mut Self, usize),
    ) -> Vec<T> {
        const PAGES_MAX: usize = 100;
        let limit_text = limit.to_string();
        let (mut items, mut cursor) = (Vec::new(), None::<String>);
        for page in 1..PAGES_MAX {
            let mut query = query.to_vec();
            query.push(("limit", &limit_text));
            query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
            let list: List<T> = self.api.get(path, &query).unwrap();
            assert!(list.items.len() <= limit, "{} items on a page of {limit}", list.items.len());
            assert!(list.next_cursor.is_none() || list.items.len() == limit, "a short page is the last");
            items.extend(list.items);
            cursor = list.next_cursor;
            if cursor.is_none() {
                return items;
            }
            if page < 5 {
                between(self, page + 1);
            }
        }
        panic!("{path} has no last page");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The engine is killed by its own drop, which needs nothing of the runtime.
        self.central_stop.cancel();
    }
}

/// Now, as stored rows count it.
pub(crate) fn now() -> UnixMicros {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    UnixMicros(now.as_micros().try_into().unwrap())
}

/// `at` as a parameter.
pub(crate) fn rfc3339(at: UnixMicros) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.0) * 1_000).unwrap();
    at.format(&time::format_description::well_known::Rfc3339).unwrap()
}

/// The problem that `answer` holds, checked to be one.
pub(crate) fn problem(answer: &Answer, what: &str) -> Problem {
    assert_eq!(answer.content_type, "application/problem+json", "{what}: {answer:?}");
    let problem: Problem = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(problem.status, answer.status, "{what}");
    assert!(problem.kind.starts_with("urn:tapio:problem:"), "{what}: {problem:?}");
    assert!(!problem.title.is_empty() && !problem.detail.is_empty(), "{what}: {problem:?}");
    problem
}

fn connection_file(folder: &Path) -> PathBuf {
    folder.join("connection.toml")
}

/// As the aggregator writes it.
fn write_connection(folder: &Path, engine: &EmbeddedEngine) {
    let reader = engine.reader();
    let text = format!(
        "url = {:?}\nreader_user = {:?}\nreader_password = {:?}\n",
        engine.http_url(),
        reader.user,
        reader.password
    );
    fs::write(connection_file(folder), text).unwrap();
}

fn write_keys(folder: &Path) -> PathBuf {
    let now = SystemTime::now();
    let authority = Authority::new("tapio test", now, CERTIFICATE_LIFETIME).unwrap();
    let hosts = [Host::Ip([127, 0, 0, 1].into())];
    let issued = authority.issue_https(&hosts, now, CERTIFICATE_LIFETIME).unwrap();
    let files = issued.write(folder, "central").unwrap();
    assert_eq!(files.certificate, folder.join("central.pem"));
    files.authority
}

fn write_config(folder: &Path) -> PathBuf {
    let path = folder.join("central.toml");
    let file = |name: &str| folder.join(name);
    let text = format!(
        "[central]\nname = \"central-test\"\nlisten = \"127.0.0.1:0\"\n\
         [identity]\ncertificate = {:?}\nkey = {:?}\n[store]\nconnection = {:?}\n",
        file("central.pem"),
        file("central.key"),
        connection_file(folder)
    );
    fs::write(&path, text).unwrap();
    path
}

fn agent(authority: &Path) -> Agent {
    let certificate = Certificate::from_pem(&fs::read(authority).unwrap()).unwrap().to_owned();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::new_with_certs(&[certificate]))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(DEADLINE))
        .http_status_as_error(false)
        .build()
        .new_agent()
}
