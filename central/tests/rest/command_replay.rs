//! `tapio replay`, as people run it. That what it replays is what was live is proven where there is an aggregator.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
};

use tapio_correlation::{Analysis, AnalysisLimits, RuleSet};
use tapio_recording::{Encoder, Ending, Entry, Head, revision_bytes};
use tapio_schemas::units::{Micros, UnixMicros};

use crate::{command::tapio, samples::finding};

const ANNOUNCED: UnixMicros = UnixMicros(1_700_000_000_000_000);

/// A part of a recording, without rules: a finding that was announced earlier is closed once nobody observed its symptom
/// for a day. `live` makes of that revision what is noted as live.
fn part(part: u32, ending: Option<Ending>, live: impl Fn(String) -> String) -> Vec<u8> {
    let rules = Arc::new(RuleSet::new(Vec::new()).unwrap());
    let earlier = finding(7, ANNOUNCED);
    let head = Head {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        tenant: earlier.tenant.clone(),
        cluster: earlier.cluster.clone(),
        began: ANNOUNCED,
        part,
        rule_set: rules.version(),
        limits: AnalysisLimits::default(),
    };
    let (tenant, cluster) = (head.tenant.clone(), head.cluster.clone());
    let mut analysis = Analysis::new(Arc::clone(&rules), tenant, cluster, head.limits);
    let mut file = Vec::new();
    let mut encoder = Encoder::begin(&head, &rules, &mut file);
    let mut put = |entry: &Entry<'_>| encoder.put(entry, &mut file).unwrap();
    put(&Entry::Earlier(&revision_bytes(&earlier)));
    analysis.adopt([earlier]);
    for seconds in [1, 90_000] {
        let now = ANNOUNCED.plus(Micros::from_secs(seconds));
        let findings = analysis.tick(now);
        put(&Entry::Tick { now, revisions: u32::try_from(findings.len()).unwrap() });
        for finding in &findings {
            let bytes = live(String::from_utf8(revision_bytes(finding)).unwrap());
            put(&Entry::Revision(bytes.as_bytes()));
        }
    }
    if let Some(ending) = ending {
        put(&Entry::End(ending));
    }
    file
}

fn whole() -> Vec<u8> {
    part(1, Some(Ending::Drained), |live| live)
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        files.iter().for_each(|(name, bytes)| fs::write(folder.path(name), bytes).unwrap());
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn replay(path: &Path, options: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = tapio().arg("replay").arg(path).args(options).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Scenario: a recording is replayed for a person, for a program, and only compared; as a file and as its folder.
/// Guarantees: the revisions and the last state of each finding are shown at their times; for a program, each line is
/// the revision's bytes and nothing else stands there; every time the same; status 0.
#[test]
fn a_recording_is_replayed() {
    let folder = Folder::with(&[("r.tapio", &whole()), ("notes.txt", b"mine")]);
    let file = folder.path("r.tapio");
    let (status, shown, errors) = replay(&file, &[]);
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    assert!(shown.starts_with("recorded by tapio-aggregator "), "{shown}");
    assert!(shown.contains("revision 2    resolved (unobserved)"), "{shown}");
    assert!(shown.contains("killed for memory, case 7 (resolved, unobserved)\n"), "{shown}");
    assert!(shown.contains("\n  not observed: "), "{shown}");
    assert!(shown.contains("; closed without having been seen to recover\n"), "{shown}");
    assert!(shown.ends_with("the same as it was live: 1 revision, byte for byte\n"), "{shown}");
    assert_eq!(replay(&file, &[]).1, shown);
    assert_eq!(replay(folder.0.path(), &[]).1, shown);

    let (status, lines, said) = replay(&file, &["--json"]);
    let value: serde_json::Value = serde_json::from_str(&lines).unwrap();
    assert_eq!((status, lines.lines().count(), value["state"].as_str()), (Some(0), 1, Some("resolved")));
    assert_eq!(value["resolution"], "unobserved");
    assert!(said.ends_with("the same as it was live: 1 revision, byte for byte\n"), "{said}");
    assert_eq!(replay(&file, &["--json", "--compare"]).1, lines);
    let (status, weighed, _) = replay(&file, &["--hypotheses"]);
    let added: String = weighed.lines().filter(|line| !shown.contains(line)).collect();
    assert_eq!((status, added.as_str()), (Some(0), "nothing was weighed that was not announced"));
    let (status, compared, _) = replay(&file, &["--compare"]);
    assert_eq!((status, compared.lines().count()), (Some(0), 3), "{compared}");
}

/// Scenario: what was live differs in one field, by a revision too many, and by one too few.
/// Guarantees: it is told where both first differ, and the status is 1.
#[test]
fn a_difference_is_a_failure() {
    let other = part(1, Some(Ending::Drained), |live| live.replace("case 7", "case 8"));
    let folder = Folder::with(&[("r.tapio", &other)]);
    let (status, shown, errors) = replay(&folder.path("r.tapio"), &["--compare"]);
    assert_eq!((status, errors.as_str()), (Some(1), "tapio: the replay differs from what was live\n"));
    assert!(
        shown.contains(
            "DIFFERS from what was live, first at 2023-11-15 23:13:20.0Z: f-0000000000000007 revision 2"
        ),
        "{shown}"
    );
    assert!(shown.contains("/title was \"shop") && shown.contains("case 8\", and is \"shop"), "{shown}");
}

/// Scenario: files and folders that are no recordings, of a newer release, damaged, or without a part.
/// Guarantees: each is refused with the file, what is wrong with it and what to do; the status is 3.
#[test]
fn what_is_no_recording_is_refused() {
    let mut newer = whole();
    newer[8] = 9;
    let mut damaged = whole();
    let last = damaged.len() - 3;
    damaged[last] ^= 4;
    let folder = Folder::with(&[
        ("text", b"hello, world"),
        ("empty", b""),
        ("newer", &newer),
        ("damaged", &damaged),
        ("short", &whole()[..60]),
    ]);
    for (name, says) in [
        ("text", "is no recording of tapio-aggregator (--record DIR makes them)"),
        ("empty", "is empty: the aggregator ended before it wrote anything there"),
        ("newer", "has format 9, this release reads 2: replay it with the release of tapio that recorded it"),
        ("damaged", "is damaged at byte"),
        ("short", "ends at byte 60, within its head"),
        ("absent", "No such file"),
        ("", "holds no recording"),
    ] {
        let (status, _, error) = replay(&folder.path(name), &[]);
        assert_eq!(status, Some(3), "{name}: {error}");
        assert!(
            error.contains(says) && error.contains(&folder.path(name).display().to_string()),
            "{name}: {error}"
        );
    }
    let (status, _, error) = replay(Path::new("/dev/zero"), &[]);
    assert!(status == Some(3) && error.contains("/dev/zero is no regular file"), "{error}");
    let again = Folder::with(&[("1.tapio", &whole()), ("2.tapio", &whole())]);
    let (status, _, error) = replay(again.0.path(), &[]);
    assert!(status == Some(3) && error.contains("are both part 1 of one recording"), "{error}");
    let cut = Folder::with(&[
        ("1.tapio", &part(1, None, |live| live)),
        ("2.tapio", &part(2, Some(Ending::Drained), |live| live)),
    ]);
    let (status, _, error) = replay(cut.0.path(), &[]);
    assert!(
        status == Some(3) && error.contains("was cut, and the recording goes on in another file"),
        "{error}"
    );
    let parts = Folder::with(&[
        ("1.tapio", &part(1, Some(Ending::Continues), |live| live)),
        ("3.tapio", &part(3, Some(Ending::Drained), |live| live)),
    ]);
    let (status, _, error) = replay(parts.0.path(), &[]);
    assert!(status == Some(3) && error.contains("part 2 is missing in front of"), "{error}");
}

/// Scenario: a folder with a recording, a file of a newer release, and one that is something else.
/// Guarantees: the recording is replayed; each of the others is said, with its name; the status is theirs.
#[test]
fn a_bad_file_hides_no_recording() {
    let mut newer = whole();
    newer[8] = 9;
    let files: [(&str, &[u8]); 3] =
        [("1.tapio", &newer), ("2.tapio", b"hello, world"), ("3.tapio", &whole())];
    let folder = Folder::with(&files);
    let (status, shown, said) = replay(folder.0.path(), &["--compare"]);
    assert!(status == Some(3) && shown.ends_with("1 revision, byte for byte\n"), "{shown}{said}");
    for (name, expected) in [("1.tapio", "has format 9"), ("2.tapio", "is no recording of tapio-aggregator")]
    {
        let line = said.lines().find(|line| line.contains(name));
        assert!(line.is_some_and(|line| line.contains(expected)), "{said}");
    }
    assert_eq!(said.lines().count(), 2, "{said}");
}

/// Scenario: a recording that was cut, one that ended early, one whose beginning made room.
/// Guarantees: each says so; what is there is replayed; a file in which nothing was written stands in nobody's way;
/// what cannot be compared to its orderly end is a failure only where that was asked for.
#[test]
fn what_is_missing_is_said() {
    let cut = part(1, None, |live| live);
    let folder = Folder::with(&[
        ("cut", &cut[..cut.len() - 5]),
        ("behind", &part(1, Some(Ending::Behind), |live| live)),
        ("middle", &part(4, Some(Ending::Drained), |live| live)),
    ]);
    let (status, shown, _) = replay(&folder.path("cut"), &[]);
    assert!(status == Some(0) && shown.contains("of a record that is not whole are left out"), "{shown}");
    assert!(shown.ends_with("not compared: the recording holds no frame and no revision\n"), "{shown}");
    let (status, shown, _) = replay(&folder.path("behind"), &[]);
    assert!(status == Some(0) && shown.contains("the recording ends because it came faster"), "{shown}");
    let (status, shown, _) = replay(&folder.path("middle"), &[]);
    assert!(status == Some(0) && shown.contains("not compared: this begins with part 4"), "{shown}");
    for name in ["cut", "behind", "middle"] {
        assert_eq!(replay(&folder.path(name), &["--compare"]).0, Some(1), "{name}");
    }
    let begun = Folder::with(&[("1.tapio", &whole()), ("2.tapio", b""), ("3.tapio", &whole()[..60])]);
    let (status, shown, said) = replay(begun.0.path(), &["--compare"]);
    assert!(status == Some(0) && shown.ends_with("1 revision, byte for byte\n"), "{shown}");
    assert_eq!(said.matches("left out: ").count(), 2, "{said}");
}

/// Scenario: a recording is replayed with a folder without rules, with rules of the user's, and with a wrong one.
/// Guarantees: a folder without rules is refused; with other rules nothing is compared; faults are told by file, line and
/// column, with status 2.
#[test]
fn rules_of_ones_own_are_used() {
    let folder = Folder::with(&[("r.tapio", &whole())]);
    let rules = Folder::with(&[]);
    let (file, options) = (folder.path("r.tapio"), ["--rules", rules.0.path().to_str().unwrap()]);
    let (status, _, error) = replay(&file, &options);
    assert!(status == Some(2) && error.contains("holds no rules: "), "{error}");
    let own = include_str!("../../../aggregator/correlation/rules/container-oom.yaml");
    fs::write(rules.path("own.yaml"), own.replace("\nid: container-oom", "\nid: own")).unwrap();
    let (status, shown, errors) = replay(&file, &options);
    assert_eq!((status, errors.as_str()), (Some(0), ""));
    assert!(shown.ends_with("not compared: the rules are others than they were live\n"), "{shown}");
    fs::write(rules.path("mine.yaml"), "version: 1\nid: mine\nsteps: 3\n").unwrap();
    let (status, shown, errors) = replay(&file, &options);
    assert_eq!((status, shown.as_str()), (Some(2), ""));
    assert!(errors.contains(&format!("{}:", rules.path("mine.yaml").display())), "{errors}");
}
