//! `GET /openapi.json`: the API as an OpenAPI 3.1 document, exact enough to test it with.
//!
//! The shapes of answers are derived from the types that are answered. Parameters stand in [`parameters`]; a test holds
//! them to what each resource takes.

mod parameters;

use std::sync::LazyLock;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};
use tapio_schemas::finding::Finding;

use self::parameters::Parameter;
use super::{
    answer::Answer, exchange::REQUEST_ID, health::HealthAnswer, ledger::LedgerAnswer, page::List,
    params::Params, problem::Problem, status::StatusAnswer,
};
use crate::history::{
    clusters::StoredCluster, entities::StoredEntity, events::StoredEvent, nodes::StoredNode,
};

/// Where the API is, on any server.
const BASE: &str = "/api/v1";

/// One resource as the document has it.
struct Resource {
    path: &'static str,
    operation: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    answer: fn(&mut SchemaGenerator) -> Schema,
    /// The problems with which it may answer beside those of every resource.
    problems: &'static [u16],
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A list under `path` and the resource of one of its members under `path/{...}`.
fn resources() -> Vec<Resource> {
    let list = |path, operation, summary, parameters, answer| Resource {
        path,
        operation,
        summary,
        parameters,
        answer,
        problems: &[],
    };
    let one = |path, operation, summary, parameters, answer| Resource {
        problems: &[404],
        ..list(path, operation, summary, parameters, answer)
    };
    vec![
        list(
            "/findings",
            "listFindings",
            "Findings, the last announced first",
            parameters::findings(),
            schema::<List<Finding>>,
        ),
        Resource {
            problems: &[404, 409],
            ..one(
                "/findings/{id}",
                "getFinding",
                "One finding with its whole chain; its id may be abbreviated",
                parameters::finding(),
                schema::<Finding>,
            )
        },
        list(
            "/events",
            "listEvents",
            "Events, the newest first",
            parameters::events(),
            schema::<List<StoredEvent>>,
        ),
        one("/events/{id}", "getEvent", "One event", parameters::event(), schema::<StoredEvent>),
        list(
            "/entities",
            "listEntities",
            "What events are about, the last appeared first",
            parameters::entities(),
            schema::<List<StoredEntity>>,
        ),
        list(
            "/clusters",
            "listClusters",
            "Clusters by name, as what their nodes report adds up to",
            parameters::clusters(),
            schema::<List<StoredCluster>>,
        ),
        one(
            "/clusters/{cluster}",
            "getCluster",
            "One cluster",
            parameters::cluster(),
            schema::<StoredCluster>,
        ),
        list(
            "/nodes",
            "listNodes",
            "Nodes by cluster and name: what works there, and what was lost",
            parameters::nodes(),
            schema::<List<StoredNode>>,
        ),
        one("/nodes/{cluster}/{node}", "getNode", "One node", parameters::node(), schema::<StoredNode>),
        list(
            "/ledger",
            "getLedger",
            "What each stage carried, folded, filtered and lost",
            parameters::ledger(),
            schema::<LedgerAnswer>,
        ),
        list(
            "/status",
            "getStatus",
            "Whether to trust the system now, and what speaks against it",
            Vec::new(),
            schema::<StatusAnswer>,
        ),
        list("/health", "getHealth", "Whether to trust the answers now", Vec::new(), schema::<HealthAnswer>),
    ]
}

/// The paths of all resources, for people who asked for another.
pub(crate) fn paths() -> impl Iterator<Item = String> {
    resources().into_iter().map(|resource| format!("{BASE}{}", resource.path))
}

/// The document, and what is to be served of it.
static DOCUMENT: LazyLock<Value> = LazyLock::new(document);

pub(crate) async fn openapi(params: Params) -> Result<Answer, Problem> {
    params.finish()?;
    Answer::whole(&*DOCUMENT)
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for resource in resources() {
        paths.insert(
            format!("{BASE}{}", resource.path),
            json!({ "get": operation(&resource, &mut generator) }),
        );
    }
    let problem = generator.subschema_for::<Problem>();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tapio",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "The root cause of a failure, and its proof",
            "description": "Times are microseconds since 1970, UTC. Lists are paged by cursor: rows that come in \
                between neither repeat nor hide one. Errors are problem documents (RFC 9457).",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": {
            "schemas": generator.take_definitions(true),
            "parameters": {
                "IfNoneMatch": {
                    "name": "If-None-Match",
                    "in": "header",
                    "description": "Entity tags of answers that the client has.",
                    "schema": { "type": "string" },
                },
                "RequestId": {
                    "name": "X-Request-Id",
                    "in": "header",
                    "description": "How the log shall name this request: up to 64 letters, digits, '-', '_' and '.'. \
                        Anything else is not used.",
                    "schema": { "type": "string" },
                },
            },
            "headers": {
                "ETag": {
                    "description": "Equal answers have equal tags. Weak of a page that another follows.",
                    "schema": { "type": "string", "pattern": "^(W/)?\"[0-9a-f]{32}\"$" },
                },
                "RequestId": {
                    "description": "How the log names this request.",
                    "schema": { "type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$" },
                },
            },
            "responses": {
                "NotModified": { "description": "The client has the answer already.", "headers": headers(true) },
                "Problem": {
                    "description": "Why there is no answer.",
                    "headers": headers(false),
                    "content": { "application/problem+json": { "schema": problem } },
                },
            },
        },
    })
}

fn operation(resource: &Resource, generator: &mut SchemaGenerator) -> Value {
    let common =
        ["IfNoneMatch", "RequestId"].map(|name| json!({ "$ref": format!("#/components/parameters/{name}") }));
    let own = resource.parameters.iter().map(Parameter::to_json);
    let mut responses = Map::new();
    responses.insert(
        "200".to_owned(),
        json!({
            "description": resource.summary,
            "headers": headers(true),
            "content": { "application/json": { "schema": (resource.answer)(generator) } },
        }),
    );
    responses.insert("304".to_owned(), json!({ "$ref": "#/components/responses/NotModified" }));
    for status in [400, 422, 500, 503].iter().chain(resource.problems) {
        responses.insert(status.to_string(), json!({ "$ref": "#/components/responses/Problem" }));
    }
    json!({
        "operationId": resource.operation,
        "summary": resource.summary,
        "parameters": own.chain(common).collect::<Vec<_>>(),
        "responses": responses,
    })
}

fn headers(tagged: bool) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/components/headers/{name}") });
    let mut headers = json!({ REQUEST_ID.as_str(): reference("RequestId") });
    if let (true, Some(headers)) = (tagged, headers.as_object_mut()) {
        headers.insert("etag".to_owned(), reference("ETag"));
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` in `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    /// Scenario: the whole document.
    /// Guarantees: every reference in it leads somewhere, and every resource and parameter is described.
    #[test]
    fn the_document_hangs_together() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        for (path, item) in document["paths"].as_object().unwrap() {
            assert!(!item["get"]["summary"].as_str().unwrap().is_empty(), "{path}");
            for parameter in item["get"]["parameters"].as_array().unwrap() {
                let described = parameter.get("$ref").is_some() || parameter["description"].is_string();
                assert!(described, "{path}: {parameter}");
            }
        }
    }
}
