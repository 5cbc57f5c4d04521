//! The reference of all keys, against the programs' own tables.

// The whole program is a test: lints that spare tests shall see it as one.
#![cfg(test)]

use std::path::Path;

use tapio_daemon::config::reference;

const HEAD: &str = "# Configuration

Each tier is told what it needs by one TOML file (`--config FILE`), by variables, and by options of its command line;
options win over variables, variables over the file, and an empty variable is none. In variables and options a list is
written with commas between its entries. `--check-config` says what is wrong, all at once, and exits with 2 if there is
anything; `--print-config` shows what is in force and where it comes from. SIGHUP reads everything again: values that
can change in a running process are applied, of the others the log says that they wait for the next start, and a
configuration with faults changes nothing.

This page is made from the programs' own tables of keys: see CONTRIBUTING.md.
";

/// Scenario: the page in the tree, and the keys as the programs read them.
/// Guarantees: the page is what the tables say; with `TAPIO_UPDATE=1` it is written anew.
#[test]
fn the_reference_is_what_the_programs_read() {
    let tiers =
        [&tapio_edge_agent::config::TIER, &tapio_aggregator::config::TIER, &tapio_central::config::TIER];
    let sections: Vec<String> = tiers.into_iter().map(reference).collect();
    let page = format!("{HEAD}\n{}", sections.join("\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    if std::env::var_os("TAPIO_UPDATE").is_some_and(|value| value == "1") {
        std::fs::write(&path, &page).expect("the page can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == page,
        "docs/configuration.md is not what the programs read; make it anew with \
         TAPIO_UPDATE=1 cargo test --release -p tapio-loadtest --test reference"
    );
}
