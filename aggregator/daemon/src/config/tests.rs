//! A tier with one key of each shape, told right and wrong things.

use std::path::Path;

use super::{settings::Sources, *};

static TIER: Tier = Tier {
    program: "tapio-test",
    about: "Tests.",
    keys: &[
        Key::text("node.name", "Its name."),
        Key::path("state.directory", "Where it keeps what it has.").or_flag("state"),
        Key::integer("spool.quota_bytes", 1_048_576, 1 << 40, "Its size.").or("4194304").reloadable(),
        Key::choice("spool.policy", &["refuse", "evict"], "What it does when it is full.").or("refuse"),
        Key::list("uplink.aggregators", 0, 2, "Where it sends.").or(""),
        Key::secret("store.password", "What it says."),
    ],
};

const GOOD: &str = "[node]\nname = \"a\"\n[state]\ndirectory = \"/var\"\n";

fn parse(text: &str) -> Settings {
    Settings::parse(&TIER, Path::new("test.toml"), text)
}

fn refused(settings: Settings) -> String {
    settings.finish(Some(())).expect_err("refused").to_string()
}

/// Scenario: the smallest file, and one that says everything.
/// Guarantees: each value is what was written, or its default; what is shown says where each comes from, hides the
/// secret, and is itself a file that says the same.
#[test]
fn values_come_from_the_file_or_are_defaults() {
    assert_eq!(TIER.faults(), Vec::<String>::new());
    let settings = parse(GOOD);
    assert_eq!(settings.text("node.name").as_deref(), Some("a"));
    assert_eq!(settings.integer::<u64>("spool.quota_bytes"), Some(4_194_304));
    assert_eq!(settings.text("store.password"), None);
    assert!(settings.is_given("node.name") && !settings.is_given("spool.policy"));
    let full = format!(
        "{GOOD}[spool]\nquota_bytes = 0x200000\npolicy = \"evict\"\n[uplink]\naggregators = [\"x:1\", \"y:2\"]\n\
         [store]\npassword = \"sesame\"\n"
    );
    let mut settings = parse(&full);
    assert_eq!(settings.integer::<u64>("spool.quota_bytes"), Some(2 << 20));
    assert_eq!(settings.read_list("uplink.aggregators", |entry| Ok::<_, String>(entry.len())), [3, 3]);
    let shown = settings.to_toml();
    assert!(shown.contains("quota_bytes = 2097152 # line 6") && !shown.contains("sesame"), "{shown}");
    assert_eq!(parse(&shown).to_toml().replace("line", "#").lines().count(), shown.lines().count());
    assert_eq!(settings.changed(&parse(&shown)).len(), 1, "only the secret differs");
    assert!(!parse(&shown).is_given("store.password"), "nothing can be taken for it: {shown}");
    assert!(!format!("{settings:?}").contains("sesame"));
    settings.finish(Some(())).expect("right");
}

/// Scenario: one key given in the file, by a variable and by an option, each a layer above the other.
/// Guarantees: the later wins, and messages name the place that is wrong; an empty variable is none.
#[test]
fn options_win_over_variables_and_variables_over_the_file() {
    let variables = [
        ("TAPIO_TEST_NODE_NAME".to_owned(), "b".to_owned()),
        ("TAPIO_TEST_SPOOL_QUOTA_BYTES".to_owned(), "2097152".to_owned()),
        ("TAPIO_TEST_STATE_DIRECTORY".to_owned(), String::new()),
    ];
    let flags = [("node.name", "c".to_owned()), ("uplink.aggregators", "x:1, y:2".to_owned())];
    let sources =
        Sources { file: Some((Path::new("test.toml"), GOOD)), variables: &variables, flags: &flags };
    let mut settings = Settings::collect(&TIER, &sources);
    assert_eq!(settings.text("node.name").as_deref(), Some("c"));
    assert_eq!(settings.text("state.directory").as_deref(), Some("/var"));
    assert_eq!(settings.integer::<u32>("spool.quota_bytes"), Some(2 << 20));
    assert_eq!(
        settings.read_list("uplink.aggregators", |entry| Ok::<_, String>(entry.to_owned())),
        ["x:1", "y:2"]
    );
    settings.refuse("spool.quota_bytes", "is odd");
    settings.refuse("node.name", "is short");
    let message = refused(settings);
    for part in [
        "variable TAPIO_TEST_SPOOL_QUOTA_BYTES, spool.quota_bytes: is odd",
        "option --node-name, node.name: is short",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

/// Scenario: variables that begin as those of the tier and stand for no key: a mistyped one, one that nothing is like, an
/// empty one; the one that names the file, and those that Kubernetes sets.
/// Guarantees: the first two are refused, the first with the nearest key; a file is not blamed for them.
#[test]
fn variables_without_a_key_are_refused() {
    let variables = [
        ("SPOOL_QUOTA_BYTE", "1"),
        ("SERVICES", "1"),
        ("SPOOL_POLICIES", ""),
        ("CONFIG", "test.toml"),
        ("SERVICE_HOST", "10.0.0.1"),
        ("PORT_7443_TCP", "tcp://10.0.0.1:7443"),
    ]
    .map(|(name, text)| (format!("TAPIO_TEST_{name}"), text.to_owned()));
    let sources = Sources { file: Some((Path::new("test.toml"), GOOD)), variables: &variables, flags: &[] };
    assert_eq!(
        refused(Settings::collect(&TIER, &sources)),
        "the configuration has 2 problems\n  \
         variable TAPIO_TEST_SERVICES, there is no key for it; tapio-test --help names all\n  \
         variable TAPIO_TEST_SPOOL_QUOTA_BYTE, there is no key for it; did you mean \
         TAPIO_TEST_SPOOL_QUOTA_BYTES?"
    );
}

/// Scenario: of two keys that exclude each other one is in the file and one in a variable; both are in one layer; one is
/// a default.
/// Guarantees: the stronger layer's one displaces the other, and nothing else.
#[test]
fn a_stronger_layer_displaces_what_it_excludes() {
    let text = format!("{GOOD}[store]\npassword = \"sesame\"\n[uplink]\naggregators = [\"a\"]\n");
    let variables = [("TAPIO_TEST_STATE_DIRECTORY".to_owned(), "/x".to_owned())];
    let sources = Sources { file: Some((Path::new("test.toml"), &text)), variables: &variables, flags: &[] };
    let mut settings = Settings::collect(&TIER, &sources);
    settings.displace("store.password", &["state.directory", "uplink.aggregators"]);
    assert!(settings.is_given("state.directory") && settings.is_given("uplink.aggregators"));
    settings.displace("state.directory", &["store.password", "spool.policy"]);
    assert_eq!(
        (settings.text("store.password"), settings.text("spool.policy").as_deref()),
        (None, Some("refuse"))
    );
    assert!(settings.is_given("uplink.aggregators") && settings.is_given("node.name"));
}

/// Scenario: a file with a fault of each kind, and a variable that is wrong as well.
/// Guarantees: all are reported at once, the file's in its order, each with its line and key, and what to write.
#[test]
fn all_faults_are_reported_at_once() {
    let text = "[node]\nnane = \"a\"\n[spool]\nquota_bytes = \"x\"\npolicy = \"drop\"\n[uplink]\n\
                aggregators = [\"a\", 1]\n[nodes]\nx = 1\n[store.password]\nx = 1\n";
    let variables = [("TAPIO_TEST_STATE_DIRECTORY".to_owned(), "/x".to_owned())];
    let flags = [("uplink.aggregators", "a,b,c".to_owned())];
    let sources =
        Sources { file: Some((Path::new("test.toml"), text)), variables: &variables, flags: &flags };
    let message = refused(Settings::collect(&TIER, &sources));
    assert_eq!(
        message,
        "the configuration test.toml has 8 problems\n  \
         line 2, node.nane: there is no key nane; [node] has name\n  \
         line 4, spool.quota_bytes: must be a whole number, is a string\n  \
         line 5, spool.policy: \"drop\" must be one of refuse, evict\n  \
         line 7, uplink.aggregators[1]: must be a string, is an integer\n  \
         line 8, nodes: there is no such table; there are node, spool, state, store, uplink\n  \
         line 10, store.password: must be a string, is a table\n  \
         option --uplink-aggregators, uplink.aggregators: must have 0 to 2 entries, has 3\n  \
         node.name: is missing: write name = ... under [node], set TAPIO_TEST_NODE_NAME, or give --node-name"
    );
    let torn = refused(parse("[node\nname = 1\n[node]\nx = = 2\n"));
    assert!(torn.contains("line 1, ") && torn.contains("line 4, ") && !torn.contains("missing"), "{torn}");
    for (quota, says) in [("1", "must be 1048576 to 1099511627776, is 1"), ("-5", "is -5")] {
        let message = refused(parse(&format!("{GOOD}[spool]\nquota_bytes = {quota}\n")));
        assert!(message.contains(says) && message.contains("has 1 problem\n"), "{message}");
    }
}

/// Scenario: command lines.
/// Guarantees: every key has an option, some a shorter one as well, the modes are understood, and what is not understood
/// is refused.
#[test]
fn every_key_has_an_option() {
    let words = ["tapio-test", "--node-name", "n", "--uplink-aggregators", "a", "--uplink-aggregators", "b"];
    let invocation = Invocation::from_words(&TIER, words).expect("understood");
    assert_eq!(invocation.mode(), Mode::Run);
    let mut settings = invocation.settings().expect("no file");
    assert_eq!(settings.text("node.name").as_deref(), Some("n"));
    assert_eq!(settings.read_list("uplink.aggregators", |entry| Ok::<_, String>(entry.len())), [1, 1]);
    assert!(
        refused(settings)
            .contains("the configuration of tapio-test has 1 problem\n  state.directory: is missing")
    );
    for (word, mode) in [("--check-config", Mode::Check), ("--print-config", Mode::Print)] {
        assert_eq!(Invocation::from_words(&TIER, ["tapio-test", word]).expect("understood").mode(), mode);
    }
    for option in ["--state-directory", "--state"] {
        let invocation = Invocation::from_words(&TIER, ["tapio-test", option, "/var"]).expect("understood");
        assert_eq!(invocation.settings().expect("no file").text("state.directory").as_deref(), Some("/var"));
    }
    assert!(Invocation::from_words(&TIER, ["tapio-test", "--spool-quota", "1"]).is_err());
    let words =
        ["tapio-test", "--config", "", "--store-password", "sesame", "--state", "/var", "--node-name", "n"];
    let invocation = Invocation::from_words(&TIER, words).expect("understood");
    assert!(!format!("{invocation:?}").contains("sesame"), "{invocation:?}");
    invocation.settings().expect("an empty name is none").finish(Some(())).expect("right");
}

/// Scenario: files that are not there, too large, without an end, or not text; a directory.
/// Guarantees: each is refused and named, and none is waited for.
#[test]
fn unreadable_files_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("agent.toml");
    let message = |path: &Path| Settings::load(&TIER, path).expect_err("refused").to_string();
    assert!(message(&path).contains("agent.toml: No such file"), "{}", message(&path));
    std::fs::write(&path, [0xff, 0xfe]).expect("written");
    assert!(message(&path).contains("agent.toml"));
    std::fs::write(&path, vec![b'#'; 1 + (1 << 20)]).expect("written");
    assert!(message(&path).contains("larger than"));
    for other in [Path::new("/dev/zero"), folder.path()] {
        assert!(message(other).contains("is no regular file"), "{}", message(other));
    }
}

/// Scenario: the reference of a tier.
/// Guarantees: it names each key with its variable, option and default.
#[test]
fn the_reference_names_every_key() {
    let text = reference(&TIER);
    for part in [
        "`quota_bytes`",
        "`4194304`",
        "`TAPIO_TEST_SPOOL_QUOTA_BYTES`",
        "`--spool-quota-bytes`",
        "`--state-directory`, `--state`",
        "SIGHUP",
        "required",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
