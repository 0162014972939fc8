//! What goes to stdout, and how: tables, records, JSON, YAML, CSV (cli.md §2). Rendering is pure.

use super::{
    args::Format,
    errors::{CliError, Exit, nearest},
};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::cmp::Ordering;

/// The text of one cell: from the whole object, the column's key and the operator's choices.
pub type Cell = fn(&Value, &'static str, &View) -> String;

/// How a column is made from an API object.
#[derive(Clone, Copy)]
pub struct Column {
    pub heading: &'static str,
    /// The API key, which `--columns`, `--sort-by` and `--filter` also accept.
    pub key: &'static str,
    /// Only with `-o wide` or when asked for by `--columns`.
    pub wide: bool,
    pub cell: Cell,
}

impl Column {
    pub const fn new(heading: &'static str, key: &'static str, cell: Cell) -> Self {
        Self { heading, key, wide: false, cell }
    }
    pub const fn wide(heading: &'static str, key: &'static str, cell: Cell) -> Self {
        Self { heading, key, wide: true, cell }
    }
}

/// A kind of object as the CLI shows it.
pub struct Noun {
    /// The keys of api.md in reading order; one that an answer lacks is shown as null.
    pub keys: &'static [&'static str],
    pub columns: &'static [Column],
}

/// Any object, shown with the keys it has.
pub const OBJECT: Noun = Noun { keys: &[], columns: &[] };

/// Choices of the operator about output.
#[derive(Clone)]
pub struct View {
    pub format: Format,
    pub columns: Vec<String>,
    pub headers: bool,
    pub sort_by: Option<String>,
    pub filter: Vec<(String, String)>,
    /// Unix time in milliseconds when times are shown as ages, absent when they are shown as dates.
    pub ages_from_ms: Option<u64>,
}

impl View {
    /// Whether stdout takes API objects, so that no other text may go there.
    pub fn is_structured(&self) -> bool {
        !matches!(self.format, Format::Table | Format::Wide)
    }
}

/// A list in the chosen format, with its trailing newline.
pub fn render_list(noun: &Noun, mut items: Vec<Value>, view: &View) -> Result<String, CliError> {
    items.iter_mut().for_each(|item| fill_absent(item, noun.keys));
    let columns = choose_columns(noun, view)?;
    for (key, wanted) in &view.filter {
        let column = find_column(noun, key)?;
        let shown = |item: &Value| (column.cell)(item, column.key, view);
        items.retain(|item| shown(item).eq_ignore_ascii_case(wanted) || plain(&item[column.key]) == *wanted);
    }
    if let Some(key) = &view.sort_by {
        let column = find_column(noun, key)?;
        items.sort_by(|a, b| compare(&a[column.key], &b[column.key]));
    }
    match view.format {
        Format::Table | Format::Wide | Format::Dot | Format::Mermaid => Ok(table(&columns, &items, view)),
        Format::Csv => Ok(csv(&columns, &items, view)),
        Format::Json => pretty(&Value::Array(items)),
        Format::Jsonl => Ok(items.iter().map(|item| format!("{item}\n")).collect()),
        Format::Yaml => yaml(&Value::Array(items)),
        Format::Name => Ok(items.iter().map(|item| format!("{}\n", name_of(item))).collect()),
    }
}

/// One object in the chosen format: as a table one line for each key.
pub fn render_one(noun: &Noun, mut item: Value, view: &View) -> Result<String, CliError> {
    fill_absent(&mut item, noun.keys);
    match view.format {
        Format::Table | Format::Wide | Format::Dot | Format::Mermaid => Ok(record(noun.keys, &item)),
        Format::Json => pretty(&item),
        Format::Yaml => yaml(&item),
        Format::Csv if noun.columns.is_empty() => Ok(csv_of_record(noun.keys, &item, view)),
        Format::Jsonl | Format::Name | Format::Csv => render_list(noun, vec![item], view),
    }
}

/// Rows under headings, for tables that are not lists of one kind.
pub fn lines(headings: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = Table::new();
    out.load_style(presets::NOTHING);
    if !headings.is_empty() {
        out.set_header(headings.to_vec());
    }
    for row in rows {
        out.add_row(row.iter().map(|cell| visible(cell)).collect::<Vec<_>>());
    }
    let last = out.column_count().saturating_sub(1);
    for (i, column) in out.column_iter_mut().enumerate() {
        column.set_padding((0, if i == last { 0 } else { 2 }));
    }
    if headings.is_empty() && rows.is_empty() { String::new() } else { format!("{}\n", out.trim_fmt()) }
}

fn table(columns: &[Column], items: &[Value], view: &View) -> String {
    let headings: Vec<&str> = if view.headers { columns.iter().map(|c| c.heading).collect() } else { Vec::new() };
    let row = |item: &Value| columns.iter().map(|c| (c.cell)(item, c.key, view)).collect();
    lines(&headings, &items.iter().map(row).collect::<Vec<_>>())
}

fn csv(columns: &[Column], items: &[Value], view: &View) -> String {
    let mut out = String::new();
    if view.headers {
        out.push_str(&csv_line(columns.iter().map(|c| c.key.to_owned())));
    }
    for item in items {
        let field = |c: &Column| item.get(c.key).map_or_else(|| (c.cell)(item, c.key, view), plain);
        out.push_str(&csv_line(columns.iter().map(field)));
    }
    out
}

fn csv_of_record(keys: &[&str], item: &Value, view: &View) -> String {
    let fields = ordered(keys, item);
    let mut out = String::new();
    if view.headers {
        out.push_str(&csv_line(fields.iter().map(|(k, _)| (*k).to_owned())));
    }
    out.push_str(&csv_line(fields.iter().map(|(_, v)| plain(v))));
    out
}

/// RFC 4180. A field that a spreadsheet would take for a formula is quoted like any other text.
fn csv_line(fields: impl Iterator<Item = String>) -> String {
    let quote = |f: String| {
        if f.contains([',', '"', '\n', '\r']) { format!("\"{}\"", f.replace('"', "\"\"")) } else { f }
    };
    format!("{}\n", fields.map(quote).collect::<Vec<_>>().join(","))
}

/// The order of columns in the lists below a record: routes, conditions; others follow by name.
const NESTED_FIRST: [&str; 8] =
    ["id", "priority", "source_cidr", "dest_cidr", "reconciler", "status", "reason", "message"];

fn record(keys: &[&str], item: &Value) -> String {
    let (nested, flat): (Vec<_>, Vec<_>) = ordered(keys, item).into_iter().partition(|(_, v)| is_list_of_objects(v));
    let rows: Vec<Vec<String>> = flat.into_iter().map(|(k, v)| vec![k.to_owned(), words(v)]).collect();
    let mut out = lines(&[], &rows);
    for (key, value) in nested {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let mut columns: Vec<&str> = Vec::new();
        for name in list.iter().filter_map(Value::as_object).flat_map(|o| o.keys()) {
            if !columns.contains(&name.as_str()) {
                columns.push(name);
            }
        }
        columns.sort_by_key(|c| NESTED_FIRST.iter().position(|first| first == c).unwrap_or(usize::MAX));
        let headings: Vec<String> = columns.iter().map(|c| c.to_uppercase().replace('_', "-")).collect();
        let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
        let rows: Vec<Vec<String>> = list.iter().map(|o| columns.iter().map(|c| words(&o[*c])).collect()).collect();
        out.push_str(&format!("\n{key}\n"));
        for line in lines(&headings, &rows).lines() {
            out.push_str(&format!("  {line}\n"));
        }
    }
    out
}

fn is_list_of_objects(value: &Value) -> bool {
    value.as_array().is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_object))
}

/// The fields of an object: known keys in reading order, then the others by name.
fn ordered<'a>(keys: &[&'a str], item: &'a Value) -> Vec<(&'a str, &'a Value)> {
    let Some(object) = item.as_object() else { return Vec::new() };
    let known = keys.iter().filter_map(|k| object.get(*k).map(|v| (*k, v)));
    let others = object.iter().filter(|(k, _)| !keys.contains(&k.as_str())).map(|(k, v)| (k.as_str(), v));
    known.chain(others).collect()
}

fn fill_absent(item: &mut Value, keys: &[&str]) {
    if let Value::Object(object) = item {
        for key in keys {
            object.entry(*key).or_insert(Value::Null);
        }
    }
}

fn choose_columns(noun: &Noun, view: &View) -> Result<Vec<Column>, CliError> {
    if view.columns.is_empty() {
        let wide = view.format == Format::Wide;
        return Ok(noun.columns.iter().filter(|c| wide || !c.wide).copied().collect());
    }
    view.columns.iter().map(|wanted| find_column(noun, wanted)).collect()
}

/// A column by its heading or key, or any other key of the object.
fn find_column(noun: &Noun, wanted: &str) -> Result<Column, CliError> {
    let heading = noun.columns.iter().find(|c| c.heading.eq_ignore_ascii_case(wanted) || c.key == wanted);
    let key = || noun.keys.iter().find(|k| **k == wanted).map(|key| Column::new(key, key, cell_plain));
    heading.copied().or_else(key).ok_or_else(|| {
        let known = noun.columns.iter().map(|c| c.heading).chain(noun.keys.iter().copied());
        let error = CliError::usage(format!("unknown column `{wanted}`"));
        match nearest(wanted, known.clone()) {
            Some(near) => error.with_hint(format!("did you mean {near}?")),
            None => error.with_fact("columns", noun.columns.iter().map(|c| c.heading).collect::<Vec<_>>().join(", ")),
        }
    })
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => plain(a).cmp(&plain(b)),
    }
}

fn name_of(item: &Value) -> String {
    let named = item["name"].as_str().filter(|n| !n.is_empty());
    visible(&named.map_or_else(|| plain(&item["id"]), str::to_owned))
}

pub fn pretty(value: &Value) -> Result<String, CliError> {
    let failed = |e| CliError::new(Exit::General, "INTERNAL", format!("cannot write JSON: {e}"));
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(failed)
}

fn yaml(value: &Value) -> Result<String, CliError> {
    let failed = |e| CliError::new(Exit::General, "INTERNAL", format!("cannot write YAML: {e}"));
    serde_saphyr::to_string(value).map_err(failed)
}

/// A value without decoration: what scripts want from CSV, empty when absent.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        Value::Array(list) if list.iter().all(|v| v.is_string() || v.is_number()) => {
            list.iter().map(plain).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

/// A value for people: absent ones have a word.
fn words(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(s) if s.is_empty() => "none".to_owned(),
        Value::Array(list) if list.is_empty() => "none".to_owned(),
        Value::Bool(b) => if *b { "yes" } else { "no" }.to_owned(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect::<Vec<_>>().join(" "),
        other => plain(other),
    }
}

/// Text of other machines must not steer the terminal.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

pub fn cell_plain(item: &Value, key: &'static str, _: &View) -> String {
    words(&item[key])
}

/// A time: its age on a terminal, else the date as the API gives it.
pub fn cell_time(item: &Value, key: &'static str, view: &View) -> String {
    let Some(text) = item[key].as_str() else { return "never".to_owned() };
    let age = view
        .ages_from_ms
        .zip(crate::model::UnixTime::parse_rfc3339(text).ok())
        .map(|(now, then)| age_text(now.saturating_sub(then.as_ms()) / 1000));
    age.unwrap_or_else(|| text.to_owned())
}

fn age_text(seconds: u64) -> String {
    match seconds {
        0 => "now".to_owned(),
        1..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m ago", seconds / 60),
        3600..86400 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86400),
    }
}

/// What a deletion leaves to be said.
pub const DELETED: Noun = Noun {
    keys: &["id", "deleted"],
    columns: &[Column::new("ID", "id", cell_plain), Column::new("DELETED", "deleted", cell_plain)],
};

/// The answer to a deletion, which the API gives without a body.
pub fn deleted_if(id: &str, deleted: bool) -> Value {
    json!({ "id": id, "deleted": deleted })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOUN: Noun = Noun {
        keys: &["id", "name", "n", "seen"],
        columns: &[
            Column::new("ID", "id", cell_plain),
            Column::new("NAME", "name", cell_plain),
            Column::wide("N", "n", cell_plain),
        ],
    };

    fn view(format: Format) -> View {
        View { format, columns: vec![], headers: true, sort_by: None, filter: vec![], ages_from_ms: None }
    }

    fn items() -> Vec<Value> {
        vec![json!({"id":"a","name":"x, \"y\"","n":10}), json!({"id":"bbbb","name":null,"n":9,"extra":[1]})]
    }

    #[test]
    fn columns_are_two_spaces_apart_without_borders_or_trailing_blanks() {
        let text = render_list(&NOUN, items(), &view(Format::Table)).unwrap();
        assert_eq!(text, "ID    NAME\na     x, \"y\"\nbbbb  none\n");
        let wide = View { headers: false, ..view(Format::Wide) };
        assert_eq!(render_list(&NOUN, items(), &wide).unwrap(), "a     x, \"y\"  10\nbbbb  none    9\n");
        assert_eq!(render_list(&NOUN, vec![], &view(Format::Table)).unwrap(), "ID  NAME\n");
    }

    #[test]
    fn lists_in_json_are_bare_arrays_with_absent_keys_as_null_and_unknown_ones_kept() {
        let text = render_list(&NOUN, items(), &view(Format::Json)).unwrap();
        let back: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back[0], json!({"id":"a","name":"x, \"y\"","n":10,"seen":null}));
        assert_eq!(back[1]["extra"], json!([1]));
        assert_eq!(render_list(&NOUN, vec![], &view(Format::Json)).unwrap(), "[]\n");
        assert_eq!(render_list(&NOUN, items(), &view(Format::Jsonl)).unwrap().lines().count(), 2);
        assert_eq!(render_list(&NOUN, items(), &view(Format::Name)).unwrap(), "x, \"y\"\nbbbb\n");
    }

    #[test]
    fn csv_quotes_what_needs_quotes_and_yaml_keeps_the_types() {
        let text = render_list(&NOUN, items(), &view(Format::Csv)).unwrap();
        assert_eq!(text, "id,name\na,\"x, \"\"y\"\"\"\nbbbb,\n");
        let text = render_list(&NOUN, items(), &view(Format::Yaml)).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!((&back[0]["n"], &back[1]["name"]), (&json!(10), &Value::Null));
    }

    #[test]
    fn lists_are_sorted_by_number_and_filtered_by_value() {
        let sorted = View { sort_by: Some("n".to_owned()), columns: vec!["id".to_owned()], ..view(Format::Table) };
        assert_eq!(render_list(&NOUN, items(), &sorted).unwrap(), "ID\nbbbb\na\n");
        let kept = View { filter: vec![("N".to_owned(), "9".to_owned())], ..view(Format::Name) };
        assert_eq!(render_list(&NOUN, items(), &kept).unwrap(), "bbbb\n");
        let wrong = View { sort_by: Some("nam".to_owned()), ..view(Format::Table) };
        let error = render_list(&NOUN, items(), &wrong).unwrap_err();
        assert_eq!((error.exit, error.hint.as_deref()), (Exit::Usage, Some("did you mean NAME?")));
    }

    #[test]
    fn a_record_has_one_line_a_key_and_lists_below() {
        let item = json!({"id":"a","name":"","n":[1,2],"routes":[{"id":6,"dest_cidr":null}]});
        let text = render_one(&NOUN, item, &view(Format::Table)).unwrap();
        assert_eq!(text, "id    a\nname  none\nn     1, 2\nseen  none\n\nroutes\n  ID  DEST-CIDR\n  6   none\n");
    }

    #[test]
    fn names_from_other_machines_cannot_steer_the_terminal() {
        let text = render_list(&NOUN, vec![json!({"id":"a\u{1b}[2J\nb","name":"n"})], &view(Format::Table)).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn times_are_ages_on_a_terminal_and_dates_elsewhere() {
        let item = json!({"t":"1970-01-01T00:01:00Z"});
        let at = |ms| View { ages_from_ms: ms, ..view(Format::Table) };
        assert_eq!(cell_time(&item, "t", &at(None)), "1970-01-01T00:01:00Z");
        assert_eq!(cell_time(&item, "t", &at(Some(65_000))), "5s ago");
        assert_eq!(cell_time(&item, "t", &at(Some(3_660_000))), "1h ago");
        assert_eq!(cell_time(&item, "u", &at(None)), "never");
    }
}
