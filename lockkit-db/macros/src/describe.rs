//! What a struct says about its table, and whether that can be. Each problem is reported where it stands, all of
//! them at once.

use proc_macro2::Span;
use syn::ext::IdentExt as _;
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned as _;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, Ident, LitStr, Type};

use crate::names;

/// A struct that can be a row: the names are plain, each is there once, and nothing is missing.
pub(crate) struct Description<'a> {
    pub(crate) table: String,
    /// At least one.
    pub(crate) keys: Vec<Column<'a>>,
    /// At least one.
    pub(crate) values: Vec<Column<'a>>,
    pub(crate) version: Column<'a>,
    /// Whether the version is a time, and not a count.
    pub(crate) timestamp: bool,
}

pub(crate) struct Column<'a> {
    pub(crate) field: &'a Ident,
    pub(crate) kind: &'a Type,
    pub(crate) name: String,
    /// Where the name stands.
    span: Span,
}

/// What a field is for.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Value,
    Key,
    Version,
    Timestamp,
}

/// The problems so far.
#[derive(Default)]
struct Problems(Option<Error>);

impl Problems {
    fn add(&mut self, problem: Error) {
        match &mut self.0 {
            Some(first) => first.combine(problem),
            none => *none = Some(problem),
        }
    }

    fn at(&mut self, span: Span, problem: impl std::fmt::Display) {
        self.add(Error::new(span, problem));
    }
}

impl<'a> Description<'a> {
    pub(crate) fn of(input: &'a DeriveInput) -> Result<Self, Error> {
        let mut problems = Problems::default();
        let fields = named_fields(input)?;
        if let Some(lifetime) = input.generics.lifetimes().next() {
            let problem = "a row owns what was read; use an owned type (String, Vec<u8>)";
            problems.at(lifetime.span(), problem);
        }
        let table = table(input, &mut problems);
        let mut keys = Vec::new();
        let mut values = Vec::new();
        let mut version: Option<(Column, bool)> = None;
        for field in fields {
            // It is there: the fields are named.
            let Some(ident) = &field.ident else { continue };
            let (role, column) = column(field, ident, &mut problems);
            match role {
                Role::Key => keys.push(column),
                Role::Value => values.push(column),
                Role::Version | Role::Timestamp => {
                    version_type(field, &mut problems);
                    if version.is_some() {
                        problems.at(
                            ident.span(),
                            "a row has one version, and it is there already",
                        );
                    } else {
                        version = Some((column, role == Role::Timestamp));
                    }
                }
            }
        }

        let all = keys.iter().chain(&values);
        let all: Vec<_> = all
            .chain(version.iter().map(|(column, _)| column))
            .collect();
        distinct(&all, &mut problems);
        let missing = input.ident.span();
        match keys.len() {
            0 => problems.at(missing, "mark the fields of the key: #[versioned(key)]"),
            number if number > names::MOST_KEYS => {
                let most = names::MOST_KEYS;
                let problem = format!("a key has at most {most} columns, and this has {number}");
                problems.at(keys[most].field.span(), problem);
            }
            _ => {}
        }
        match values.len() {
            0 => problems.at(missing, "there is no field besides key and version"),
            number if number > names::MOST_COLUMNS => {
                let most = names::MOST_COLUMNS;
                let problem = format!("there are at most {most} columns, and this has {number}");
                problems.at(values[most].field.span(), problem);
            }
            _ => {}
        }
        if version.is_none() {
            let problem = "mark the field of the version: #[versioned(version)] for a count, \
                           #[versioned(timestamp)] for the server's time";
            problems.at(missing, problem);
        }
        match (problems.0, table, version) {
            (None, Some(table), Some((version, timestamp))) => Ok(Self {
                table,
                keys,
                values,
                version,
                timestamp,
            }),
            (problem, ..) => {
                Err(problem.unwrap_or_else(|| Error::new(missing, "this cannot be a row")))
            }
        }
    }
}

fn named_fields(
    input: &DeriveInput,
) -> Result<&syn::punctuated::Punctuated<Field, syn::Token![,]>, Error> {
    let span = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(fields) => return Ok(&fields.named),
            Fields::Unnamed(_) | Fields::Unit => input.ident.span(),
        },
        Data::Enum(data) => data.enum_token.span,
        Data::Union(data) => data.union_token.span,
    };
    Err(Error::new(span, "a row is a struct with named fields"))
}

fn table(input: &DeriveInput, problems: &mut Problems) -> Option<String> {
    let mut table: Option<LitStr> = None;
    let mut sound = true;
    for attribute in ours(&input.attrs) {
        let parsed = attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("table") {
                return Err(meta.error("of a struct only `table = \"...\"` is said"));
            }
            let name = once(&meta, &mut table)?;
            names::table(&name.value()).map_err(|problem| Error::new(name.span(), problem))
        });
        if let Err(error) = parsed {
            sound = false;
            problems.add(error);
        }
    }
    if table.is_none() && sound {
        let problem = "name the table: #[versioned(table = \"...\")]";
        problems.at(input.ident.span(), problem);
    }
    table.map(|name| name.value())
}

fn column<'a>(field: &'a Field, ident: &'a Ident, problems: &mut Problems) -> (Role, Column<'a>) {
    let mut role = Role::Value;
    let mut name: Option<LitStr> = None;
    for attribute in ours(&field.attrs) {
        let parsed = attribute.parse_nested_meta(|meta| {
            let said = if meta.path.is_ident("column") {
                return once(&meta, &mut name).map(drop);
            } else if meta.path.is_ident("key") {
                Role::Key
            } else if meta.path.is_ident("version") {
                Role::Version
            } else if meta.path.is_ident("timestamp") {
                Role::Timestamp
            } else {
                return Err(meta.error(
                    "of a field are said `key`, `version` or `timestamp`, and `column = \"...\"`",
                ));
            };
            if role != Role::Value {
                return Err(meta.error("a field is one of key, version and timestamp, said once"));
            }
            role = said;
            Ok(())
        });
        if let Err(error) = parsed {
            problems.add(error);
        }
    }
    let (name, span) = match name {
        Some(name) => (name.value(), name.span()),
        // `r#type` is the column `type`.
        None => (ident.unraw().to_string(), ident.span()),
    };
    if let Err(problem) = names::column(&name) {
        problems.at(span, problem);
    }
    let column = Column {
        field: ident,
        kind: &field.ty,
        name,
        span,
    };
    (role, column)
}

fn ours(attributes: &[Attribute]) -> impl Iterator<Item = &Attribute> {
    let ours = |attribute: &&Attribute| attribute.path().is_ident("versioned");
    attributes.iter().filter(ours)
}

/// The text after `=`, which may be there once.
fn once(meta: &ParseNestedMeta, text: &mut Option<LitStr>) -> Result<LitStr, Error> {
    let given: LitStr = meta.value()?.parse()?;
    if text.is_some() {
        return Err(meta.error("said twice"));
    }
    *text = Some(given.clone());
    Ok(given)
}

/// Looked at as it is written: what an alias stands for cannot be seen here.
fn version_type(field: &Field, problems: &mut Problems) {
    let mut kind = &field.ty;
    // What a macro by example has put in.
    while let Type::Group(group) = kind {
        kind = &group.elem;
    }
    let last = match kind {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        _ => None,
    };
    if !last.is_some_and(|last| last.ident == "i64" || last.ident == "Version") {
        let problem = "a version is an `i64` or a `lockkit_db::cas::Version`, by that name";
        problems.at(field.ty.span(), problem);
    }
}

fn distinct(columns: &[&Column], problems: &mut Problems) {
    for (at, column) in columns.iter().enumerate() {
        let known = &columns[..at];
        if known
            .iter()
            .any(|known| names::same(&known.name, &column.name))
        {
            problems.at(
                column.span,
                format!("the column {} is there twice", column.name),
            );
        }
    }
}
