//! From a verdict to sentences: a rule's templates, filled with names, counts and units that a person reads.

use tapio_schemas::{
    entity::EntityKey,
    finding::{EvidenceLine, NamedEntity},
    intent::LinkKind,
    observation::Value,
    units::ByteCount,
    verdict::{Evidence, Stance, Verdict},
};

use super::names::{Names, named_entity, plain_name};
use crate::{
    rule::{Rule, Step},
    template::{Part, Place, Template, Unit, What},
};

/// What is told of a verdict.
pub(super) struct Told {
    /// Nothing where the evidence that it speaks of is not there (any more).
    pub(super) title: Option<String>,
    pub(super) lines: Vec<EvidenceLine>,
    pub(super) recommended_action: Option<String>,
    pub(super) names: Vec<NamedEntity>,
}

struct Teller<'a> {
    rule: &'a Rule,
    verdict: &'a Verdict,
    names: &'a [NamedEntity],
    /// The line that is being told: its step's places speak of it, not of the step's first line.
    line: Option<&'a Evidence>,
}

/// Tells a verdict.
pub(super) fn tell(verdict: &Verdict, rule: &Rule, names: &dyn Names) -> Told {
    let named = named(verdict, names);
    let teller = Teller { rule, verdict, names: &named, line: None };
    let title = teller.render(&rule.title);
    let recommended_action = teller.render(&rule.recommended_action);
    let step_of = |line: &Evidence| rule.steps.iter().find(|step| step.id == line.step);
    let lines = verdict
        .evidence
        .iter()
        .filter_map(|line| Some((line, step_of(line)?)))
        .filter(|(line, step)| !step.line.parts.is_empty() || line.stance == Stance::Contradicting)
        .map(|(line, step)| {
            let teller = Teller { line: Some(line), ..teller };
            let mut text = teller.render(&step.line).unwrap_or_else(|| step.id.clone());
            if line.stance == Stance::Contradicting {
                text = format!("against it: {} {}", teller.name(&line.subject), teller.words(line, step));
            }
            EvidenceLine {
                step: line.step.clone(),
                role: line.role,
                stance: line.stance,
                at: line.first.middle(),
                text,
                basis: teller.basis(line, step),
            }
        })
        .collect();
    Told { title, lines, recommended_action, names: named }
}

/// The names of all entities that a verdict speaks of, each once.
fn named(verdict: &Verdict, names: &dyn Names) -> Vec<NamedEntity> {
    let mut named: Vec<NamedEntity> = Vec::new();
    let mut add = |entity: &EntityKey, at| {
        if named.iter().any(|known| known.entity == *entity) {
            return;
        }
        named.push(named_entity(entity, at, names));
    };
    for line in &verdict.evidence {
        add(&line.subject, line.first.middle());
    }
    let at = verdict.evidence.first().map(|line| line.first.middle()).unwrap_or_default();
    for entity in verdict.candidates.iter().map(|candidate| &candidate.cause) {
        add(entity, at);
    }
    for change in &verdict.changes {
        add(&change.subject, change.at);
    }
    named
}

impl<'a> Teller<'a> {
    fn name(&self, entity: &EntityKey) -> String {
        let known = self.names.iter().find(|known| known.entity == *entity);
        known.map_or_else(|| plain_name(entity), |known| known.name.clone())
    }

    /// The evidence that a place speaks of: the line being told, else the first supporting line of its step.
    fn evidence(&self, place: &Place) -> Option<(&'a Evidence, &'a Step)> {
        let step = self.rule.step(place.step)?;
        if let Some(line) = self.line
            && line.step == step.id
        {
            return Some((line, step));
        }
        let is_of = |line: &&Evidence| line.step == step.id && line.stance == Stance::Supporting;
        self.verdict.evidence.iter().find(is_of).map(|line| (line, step))
    }

    fn value(&self, place: &Place) -> Option<String> {
        let (line, step) = self.evidence(place)?;
        match &place.what {
            What::Name => Some(self.name(&line.subject)),
            What::Peer => line.peer.as_ref().map(|peer| self.name(peer)),
            What::Count => (line.count > 1).then(|| grouped(line.count)),
            What::Trace => line.traces.first().map(|trace| {
                let text = trace.to_string();
                format!("{}…", text.chars().take(4).collect::<String>())
            }),
            What::Words => Some(self.words(line, step)),
            What::Field(name) => match name.as_str() {
                "count" => Some(grouped(line.count)),
                _ => line.attributes.get(name).map(|value| with_unit(value, place.unit)),
            },
        }
    }

    /// What happened, in the words of the rule and in the order in which it began.
    fn words(&self, line: &Evidence, step: &'a Step) -> String {
        let place = |intent: &String| line.order.iter().position(|one| one == intent);
        let counted = |(intent, word): (&'a String, &'a String)| {
            let count = line.intents.get(intent).copied().filter(|count| *count > 0)?;
            Some((place(intent), if word.is_empty() { intent } else { word }, count))
        };
        let all = || step.observe.iter().zip(&step.words);
        let mut told: Vec<_> = all().filter(|(_intent, word)| !word.is_empty()).filter_map(counted).collect();
        if told.is_empty() {
            told = all().filter_map(counted).collect();
        }
        told.sort_by_key(|(place, ..)| place.unwrap_or(usize::MAX));
        let mut words: Vec<(&str, u64)> = Vec::new();
        for (_place, word, count) in told {
            match words.iter_mut().find(|(known, _sum)| known == word) {
                Some((_known, sum)) => *sum = sum.saturating_add(count),
                None => words.push((word, count)),
            }
        }
        let word = |(word, count): &(&str, u64)| match count {
            0 | 1 => (*word).to_owned(),
            _ => format!("{word} ×{}", grouped(*count)),
        };
        words.iter().map(word).collect::<Vec<_>>().join(", then ")
    }

    /// How a line is known: its link, its basis, and the bases of the steps that are told with it.
    fn basis(&self, line: &Evidence, step: &Step) -> String {
        let place = self.rule.steps.iter().position(|other| other.id == step.id);
        let mut bases = vec![self.own_basis(line, step)];
        for other in &self.rule.steps {
            let is_told_here =
                other.told_with.and_then(|at| usize::try_from(at).ok()) == place && place.is_some();
            let is_of = |one: &&Evidence| one.step == other.id && one.stance == Stance::Supporting;
            if is_told_here && let Some(its) = self.verdict.evidence.iter().find(is_of) {
                bases.push(Teller { line: Some(its), ..*self }.own_basis(its, other));
            }
        }
        bases.retain(|basis| !basis.is_empty());
        let link = if line.link == LinkKind::None { LinkKind::Inferred } else { line.link };
        format!("{}  {}", link.as_str(), bases.join(", "))
    }

    fn own_basis(&self, line: &Evidence, step: &Step) -> String {
        if step.basis.parts.is_empty() {
            line.probes.join(", ").replace('_', " ")
        } else {
            self.render(&step.basis).unwrap_or_default()
        }
    }

    /// The sentence; nothing if a place outside of optional parts has no value.
    fn render(&self, template: &Template) -> Option<String> {
        let mut text = String::new();
        // Where the open optional parts begin, and whether all their places had a value.
        let mut open: Vec<(usize, bool)> = Vec::new();
        for part in &template.parts {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Open => open.push((text.len(), true)),
                Part::Close => {
                    if let Some((start, false)) = open.pop() {
                        text.truncate(start);
                    }
                }
                Part::Place(place) => match (self.value(place), open.last_mut()) {
                    (Some(value), _) => text.push_str(&value),
                    (None, Some((_start, complete))) => *complete = false,
                    (None, None) => return None,
                },
            }
        }
        Some(text)
    }
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sizes are shown with three digits; a negative one as zero"
)]
fn with_unit(value: &Value, unit: Unit) -> String {
    let bytes = match value {
        Value::Integer(number) => u64::try_from(*number).unwrap_or(0),
        Value::Float(number) => number.max(0.0).round() as u64,
        Value::Bool(_) | Value::Text(_) => 0,
    };
    match (unit, value) {
        (Unit::Bytes, _) => ByteCount(bytes).to_string(),
        (Unit::BytesPerSecond, _) => format!("{}/s", ByteCount(bytes)),
        (Unit::Plain, Value::Integer(number)) => number.to_string(),
        (Unit::Plain, Value::Float(number)) => format!("{number:.1}"),
        (Unit::Plain, Value::Bool(yes)) => if *yes { "yes" } else { "no" }.to_owned(),
        (Unit::Plain, Value::Text(text)) => text.clone(),
    }
}
