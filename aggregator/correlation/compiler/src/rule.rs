//! One rule file: its keys, its steps, and what they refer to.

use std::collections::BTreeSet;

use tapio_correlation::{
    rule::{About, Announce, LinkTo, Presence, Rule, Scope, Side, Step, StepLink, Tell, TimeBound},
    template::Template,
};
use tapio_schemas::{
    intent::{self, Severity},
    verdict::Role,
};

use crate::{
    LANGUAGE_VERSION, condition,
    fault::{Fault, suggestion},
    reader::{Fields, Reader},
    sentence,
    yaml::{self, Node, Yaml},
};

/// The most steps that a rule may have.
const STEPS_MAX: usize = 32;

/// The most occurrences that a step may ask for.
const AT_LEAST_MAX: u32 = 1_000;

/// The longest time that a step may look away from another.
const WITHIN_MICROS_MAX: u64 = 86_400_000_000;

const RULE_KEYS: &[&str] =
    &["version", "id", "title", "severity", "scope", "announce", "recommended-action", "steps"];

const STEP_KEYS: &[&str] = &[
    "id",
    "role",
    "observe",
    "words",
    "about",
    "tell",
    "where",
    "at-least",
    "presence",
    "before",
    "after",
    "same-container-as",
    "same-pod-as",
    "same-process-as",
    "caller-of",
    "transitively-calls",
    "same-trace-as",
    "keeps-out",
    "probes",
    "otherwise",
    "line",
    "basis",
    "told-with",
];

const LINKS: [(&str, LinkTo); 7] = [
    ("same-container-as", LinkTo::SameContainer),
    ("same-pod-as", LinkTo::SamePod),
    ("same-process-as", LinkTo::SameProcess),
    ("caller-of", LinkTo::CallerOf),
    ("transitively-calls", LinkTo::TransitivelyCalls),
    ("same-trace-as", LinkTo::SameTrace),
    ("keeps-out", LinkTo::KeepsOut),
];

/// Compiles one file: the rule with its place, and everything that is wrong.
pub(crate) fn compile(file: &str, text: &str) -> (Option<(Rule, Fault)>, Vec<Fault>) {
    let root = match yaml::parse(file, text) {
        Ok(root) => root,
        Err(fault) => return (None, vec![fault]),
    };
    let mut reader = Reader::new(file, text);
    let rule = read_rule(&mut reader, &root);
    let place = reader.place(&root);
    (rule.map(|rule| (rule, place)), reader.faults)
}

fn read_rule(reader: &mut Reader<'_>, root: &Node) -> Option<Rule> {
    let fields = reader.fields(root, "a rule", RULE_KEYS);
    if let Some(version) = reader.require(&fields, "version", "the rule")
        && !matches!(version.value, Yaml::Integer(LANGUAGE_VERSION))
    {
        reader.refuse(version, format!("this version reads rules of `version: {LANGUAGE_VERSION}`"));
    }
    let id = reader.require(&fields, "id", "the rule").and_then(|node| read_id(reader, node, "a rule's id"));
    let severities: Vec<(&str, Severity)> = Severity::ALL.iter().map(|one| (one.as_str(), *one)).collect();
    let severity = reader
        .require(&fields, "severity", "the rule")
        .and_then(|node| reader.choice(node, "the severity", &severities));
    let scopes = [("process", Scope::Process), ("node", Scope::Node), ("cluster", Scope::Cluster)];
    let scope = reader
        .require(&fields, "scope", "the rule")
        .and_then(|node| reader.choice(node, "the scope", &scopes));
    let announces = [("finding", Announce::Finding), ("hypothesis", Announce::Hypothesis)];
    let announce = fields
        .get("announce")
        .map_or(Some(Announce::Finding), |node| reader.choice(node, "`announce`", &announces));
    let step_nodes = match reader.require(&fields, "steps", "the rule").map(|node| (node, &node.value)) {
        Some((_node, Yaml::List(nodes))) if (1..=STEPS_MAX).contains(&nodes.len()) => nodes.as_slice(),
        Some((node, _value)) => {
            reader.refuse(node, format!("the steps must be a list of 1 to {STEPS_MAX}"));
            &[]
        }
        None => &[],
    };
    let step_fields: Vec<(&Node, Fields<'_>)> =
        step_nodes.iter().map(|node| (node, reader.fields(node, "a step", STEP_KEYS))).collect();
    let names: Vec<&str> = step_fields
        .iter()
        .map(|(_node, fields)| {
            let id = reader.require(fields, "id", "the step");
            id.and_then(|node| read_id(reader, node, "a step's id")).unwrap_or_default()
        })
        .collect();
    for (place, ((node, _fields), name)) in step_fields.iter().zip(&names).enumerate() {
        if !name.is_empty() && names.iter().take(place).any(|other| other == name) {
            reader.refuse(node, format!("two steps have the id `{name}`"));
        }
    }
    let mut steps = Vec::new();
    for ((node, fields), name) in step_fields.iter().zip(&names) {
        steps.extend(read_step(reader, node, fields, name, &names));
    }
    let title = reader
        .require(&fields, "title", "the rule")
        .map(|node| read_sentence(reader, node, "the title", &names))
        .unwrap_or_default();
    let recommended_action = fields
        .get("recommended-action")
        .map(|node| read_sentence(reader, node, "the recommended action", &names))
        .unwrap_or_default();
    if steps.len() != step_nodes.len() || steps.is_empty() {
        return None;
    }
    refuse_containers_of_pods(reader, &step_fields, &steps);
    let anchor = find_anchor(reader, root, &steps)?;
    let order = find_order(reader, root, &steps, anchor)?;
    Some(Rule {
        id: id?.to_owned(),
        title,
        recommended_action,
        severity_code: severity?.code(),
        scope: scope?,
        announce: announce?,
        steps,
        anchor,
        order,
    })
}

/// An id: what stands in URLs, metrics and sentences.
fn read_id<'n>(reader: &mut Reader<'_>, node: &'n Node, what: &str) -> Option<&'n str> {
    let text = reader.text(node, what)?;
    let is_id = text.len() <= 63
        && text.starts_with(|letter: char| letter.is_ascii_lowercase())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_id {
        reader.refuse(node, format!("{what} is 1 to 63 of a-z, 0-9 and `-`, beginning with a letter"));
        return None;
    }
    Some(text)
}

fn read_sentence(reader: &mut Reader<'_>, node: &Node, what: &str, names: &[&str]) -> Template {
    let Some(text) = reader.text(node, what) else { return Template::default() };
    sentence::parse(text, names).unwrap_or_else(|wrong| {
        for message in wrong {
            reader.refuse(node, format!("{what}: {message}"));
        }
        Template::default()
    })
}

fn read_step(
    reader: &mut Reader<'_>,
    node: &Node,
    fields: &Fields<'_>,
    name: &str,
    names: &[&str],
) -> Option<Step> {
    let roles: Vec<(&str, Role)> = Role::ALL.iter().map(|role| (role.as_str(), *role)).collect();
    let role =
        reader.require(fields, "role", "the step").and_then(|node| reader.choice(node, "the role", &roles));
    let presences = [
        ("required", Presence::Required),
        ("expected", Presence::Expected),
        ("contradicts", Presence::Contradicts),
    ];
    let presence = reader
        .require(fields, "presence", "the step")
        .and_then(|node| reader.choice(node, "the presence", &presences));
    let observe = read_observe(reader, fields);
    let words = read_words(reader, fields, &observe);
    let abouts = [("container", About::Container), ("pod", About::Pod)];
    let about =
        fields.get("about").map_or(Some(About::default()), |node| reader.choice(node, "`about`", &abouts));
    // What led to a fault says most of it right before it; of everything else the beginning counts.
    let usual = if role == Some(Role::Cause) { Tell::Latest } else { Tell::First };
    let tells = [("first", Tell::First), ("latest", Tell::Latest)];
    let tell = fields.get("tell").map_or(Some(usual), |node| reader.choice(node, "`tell`", &tells));
    let condition = fields.get("where").and_then(|node| read_condition(reader, node));
    let at_least = read_at_least(reader, fields);
    let mut bounds = Vec::new();
    for (key, side) in [("before", Side::Before), ("after", Side::After)] {
        for (node, text) in fields.get(key).map(|node| reader.texts(node, key)).unwrap_or_default() {
            bounds.extend(read_bound(reader, node, text, key, side, names));
        }
    }
    let mut links = Vec::new();
    for (key, to) in LINKS {
        for (node, text) in fields.get(key).map(|node| reader.texts(node, key)).unwrap_or_default() {
            links.extend(step_named(reader, node, text, names).map(|step| StepLink { step, to }));
        }
    }
    let probes = fields.get("probes").map(|node| reader.texts(node, "a probe")).unwrap_or_default();
    let mut reference = |key: &str| {
        let node = fields.get(key)?;
        let text = reader.text(node, key)?;
        step_named(reader, node, text, names)
    };
    let (otherwise, told_with) = (reference("otherwise"), reference("told-with"));
    let calls_chain = links.iter().any(|link| link.to == LinkTo::TransitivelyCalls);
    if otherwise.is_some() && !calls_chain {
        reader.refuse(node, "`otherwise` belongs to a step that `transitively-calls` another");
    }
    let mut sentence =
        |key: &str| fields.get(key).map(|node| read_sentence(reader, node, key, names)).unwrap_or_default();
    let (line, basis) = (sentence("line"), sentence("basis"));
    Some(Step {
        id: (!name.is_empty()).then(|| name.to_owned())?,
        role_code: role?.code(),
        observe: observe.into_iter().map(str::to_owned).collect(),
        words,
        about: about?,
        tell: tell?,
        condition,
        at_least: at_least?,
        presence: presence?,
        bounds,
        links,
        probes: probes.into_iter().map(|(_node, probe)| probe.to_owned()).collect(),
        otherwise,
        line,
        basis,
        told_with,
    })
}

fn read_observe<'n>(reader: &mut Reader<'_>, fields: &Fields<'n>) -> Vec<&'n str> {
    let Some(node) = reader.require(fields, "observe", "the step") else { return Vec::new() };
    let texts = reader.texts(node, "an intent");
    let mut observe: Vec<&str> = Vec::new();
    for (node, text) in texts {
        if !intent::ALL.contains(&text) {
            let hint = suggestion(text, intent::ALL.iter().copied());
            reader.refuse(node, format!("no source emits the intent `{text}`{hint}"));
        } else if observe.contains(&text) {
            reader.refuse(node, format!("the intent `{text}` stands twice"));
        } else {
            observe.push(text);
        }
    }
    observe
}

fn read_words(reader: &mut Reader<'_>, fields: &Fields<'_>, observe: &[&str]) -> Vec<String> {
    let mut words = vec![String::new(); observe.len()];
    let Some(node) = fields.get("words") else { return words };
    let given = reader.fields(node, "the words", observe);
    for (word, intent) in words.iter_mut().zip(observe) {
        if let Some(text) = given.get(intent).and_then(|node| reader.text(node, "a word")) {
            text.clone_into(word);
        }
    }
    words
}

fn read_condition(reader: &mut Reader<'_>, node: &Node) -> Option<tapio_correlation::condition::Condition> {
    let text = reader.text(node, "a condition")?;
    match condition::translate(text) {
        Ok(condition) => Some(condition),
        Err(wrong) => {
            for (offset, message) in wrong {
                let place = reader.place_within(node, offset);
                reader.faults.push(place.saying(format!("`where`: {message}")));
            }
            None
        }
    }
}

fn read_at_least(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<u32> {
    let Some(node) = fields.get("at-least") else { return Some(1) };
    let count = match node.value {
        Yaml::Integer(count) => u32::try_from(count).ok().filter(|count| (1..=AT_LEAST_MAX).contains(count)),
        _ => None,
    };
    if count.is_none() {
        reader.refuse(
            node,
            format!("`at-least` is how often it must have happened: a number from 1 to {AT_LEAST_MAX}"),
        );
    }
    // What everything is held against is one fault however often it happens.
    if count.is_some_and(|count| count > 1) && ["before", "after"].iter().all(|key| fields.get(key).is_none())
    {
        reader.refuse(node, "`at-least` belongs to a step that is `before` or `after` another");
    }
    count
}

/// A pod is no container: what is about one is in no container of the other's evidence.
fn refuse_containers_of_pods(reader: &mut Reader<'_>, nodes: &[(&Node, Fields<'_>)], steps: &[Step]) {
    for ((node, fields), step) in nodes.iter().zip(steps) {
        for link in step.links.iter().filter(|link| link.to == LinkTo::SameContainer) {
            let other = usize::try_from(link.step).ok().and_then(|at| steps.get(at));
            if let Some(other) = other.filter(|other| other.about == About::Pod) {
                let place = fields.get("same-container-as").unwrap_or(node);
                let message = format!("the step `{}` is about a pod: write `same-pod-as`", other.id);
                reader.refuse(place, message);
            }
        }
    }
}

fn step_named(reader: &mut Reader<'_>, node: &Node, text: &str, names: &[&str]) -> Option<u32> {
    let place = names.iter().position(|name| *name == text).and_then(|place| u32::try_from(place).ok());
    if place.is_none() {
        let hint = suggestion(text, names.iter().copied());
        reader.refuse(node, format!("the rule has no step `{text}`{hint}"));
    }
    place
}

/// `kill within 15m`.
fn read_bound(
    reader: &mut Reader<'_>,
    node: &Node,
    text: &str,
    key: &str,
    side: Side,
    names: &[&str],
) -> Option<TimeBound> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [step, "within", length] = parts.as_slice() else {
        reader.refuse(
            node,
            format!("`{key}` is written as `{key}: <step> within <time>`, for example `kill within 60s`"),
        );
        return None;
    };
    let within = micros(length);
    if within.is_none() {
        reader.refuse(node, format!("`{length}` is no time of at most one day: write 500ms, 60s, 15m or 2h"));
    }
    Some(TimeBound { step: step_named(reader, node, step, names)?, side, within_micros: within? })
}

fn micros(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let factor: u64 = match unit {
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|micros| (1..=WITHIN_MICROS_MAX).contains(micros))
}

/// The fault that everything is held against: the one required fault that refers to no other step.
fn find_anchor(reader: &mut Reader<'_>, root: &Node, steps: &[Step]) -> Option<u32> {
    let is_anchor = |step: &Step| {
        step.role() == Role::Fault
            && step.presence == Presence::Required
            && step.bounds.is_empty()
            && step.links.is_empty()
    };
    let anchors: Vec<usize> = steps
        .iter()
        .enumerate()
        .filter(|(_place, step)| is_anchor(step))
        .map(|(place, _step)| place)
        .collect();
    if let [anchor] = anchors.as_slice() {
        return u32::try_from(*anchor).ok();
    }
    reader.refuse(
        root,
        format!(
            "a rule has exactly one required step of role `fault` that refers to no other step, this one has {}",
            anchors.len()
        ),
    );
    None
}

/// An order in which every step comes after those that it refers to; effects before symptoms where both may come.
fn find_order(reader: &mut Reader<'_>, root: &Node, steps: &[Step], anchor: u32) -> Option<Vec<u32>> {
    let mut known: BTreeSet<u32> = BTreeSet::from([anchor]);
    let mut order: Vec<u32> = Vec::new();
    let places: Vec<(u32, &Step)> = (0..).zip(steps).collect();
    for (place, step) in &places {
        if *place != anchor && step.bounds.is_empty() {
            reader.refuse(
                root,
                format!("the step `{}` needs a time: `before` or `after` another step", step.id),
            );
        }
    }
    while order.len() + 1 < steps.len() {
        let needs = |step: &Step| -> Vec<u32> {
            let bounds = step.bounds.iter().map(|bound| bound.step);
            bounds.chain(step.links.iter().map(|link| link.step)).chain(step.otherwise).collect()
        };
        let ready = places
            .iter()
            .filter(|(place, step)| {
                !known.contains(place) && needs(step).iter().all(|need| known.contains(need))
            })
            .min_by_key(|(place, step)| (step.role(), *place));
        let Some((place, _step)) = ready else {
            let left: Vec<&str> = places
                .iter()
                .filter(|(place, _step)| !known.contains(place))
                .map(|(_place, step)| step.id.as_str())
                .collect();
            reader.refuse(root, format!("these steps refer to each other in a circle: {}", left.join(", ")));
            return None;
        };
        known.insert(*place);
        order.push(*place);
    }
    Some(order)
}
