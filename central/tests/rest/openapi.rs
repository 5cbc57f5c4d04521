//! The OpenAPI document, held to what the server does.

use serde_json::Value;

use crate::world::World;

fn document(world: &World) -> Value {
    let answer = world.ask("GET", "/api/v1/openapi.json");
    assert_eq!((answer.status, answer.content_type.as_str()), (200, "application/json"));
    serde_json::from_str(&answer.body).unwrap()
}

/// Scenario: every path of the document is asked with a parameter that nothing has; so is every route that the text of
/// a 404 names.
/// Guarantees: the document names exactly the parameters that each resource takes, and exactly the resources there are.
#[test]
fn the_document_names_every_parameter() {
    let Some(world) = World::start() else { return };
    let document = document(&world);
    let paths = document["paths"].as_object().unwrap();
    for (path, item) in paths {
        let asked = path
            .replace("/clusters/{cluster}", "/clusters/c1")
            .replace("{cluster}/{node}", "c1/n1")
            .replace("/findings/{id}", "/findings/f-71aa")
            .replace("/events/{id}", &format!("/events/{}-1-1-1", "0".repeat(32)));
        let problem = world.refused(&format!("{}?colour=red", asked.strip_prefix("/api/v1").unwrap()));
        let [fault] = &problem.errors[..] else { panic!("{path}: {problem:?}") };
        let parameters = item["get"]["parameters"].as_array().unwrap();
        let named: Vec<_> = parameters
            .iter()
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(named, fault.allowed, "{path}");
    }
    let nowhere = world.refused("/nowhere");
    for path in paths.keys() {
        assert!(nowhere.detail.contains(path.as_str()), "{path} is missing in {}", nowhere.detail);
    }
}
