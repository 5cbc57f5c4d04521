//! The reference of all keys, as Markdown, made from the same tables that the programs read.

use super::key::{Key, Presence, Shape, Tier};

/// The section of one tier.
#[must_use]
pub fn reference(tier: &Tier) -> String {
    let mut text = format!("## {}\n\n{}\n", tier.program, tier.about);
    let mut current = "";
    for key in tier.keys {
        let (table, _) = key.table_and_name();
        if table != current {
            text.push_str(&format!(
                "\n### [{table}]\n\n| key | value | default | variable | option |\n|---|---|---|---|---|\n"
            ));
            current = table;
        }
        text.push_str(&row(tier, key));
    }
    text
}

fn row(tier: &Tier, key: &Key) -> String {
    let (_, name) = key.table_and_name();
    let shape = match key.shape {
        Shape::Text => "text".to_owned(),
        Shape::Path => "path".to_owned(),
        Shape::Integer { least, most } => format!("{least} to {most}"),
        Shape::Choice(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(" or "),
        Shape::List { entries_min, entries_max } => format!("list of {entries_min} to {entries_max}"),
    };
    let default = match key.presence {
        Presence::Required => "required".to_owned(),
        Presence::Optional => "none".to_owned(),
        Presence::Default("") => "empty".to_owned(),
        Presence::Default(default) => format!("`{default}`"),
    };
    let notes = match (key.is_secret, key.is_reloadable) {
        (true, _) => " Secret: never shown.",
        (false, true) => " SIGHUP applies a change.",
        (false, false) => "",
    };
    let short = key.short_flag.map_or_else(String::new, |flag| format!(", `--{flag}`"));
    format!(
        "| `{name}` | {}{notes} ({shape}) | {default} | `{}` | `--{}`{short} |\n",
        key.doc.replace('|', "\\|"),
        tier.variable(key),
        key.flag()
    )
}
