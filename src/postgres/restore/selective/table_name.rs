//! A table's name with its schema.

use std::fmt;

use crate::postgres::sql::quote_identifier;

/// The longest name (`NAMEDATALEN` less the zero).
pub(super) const MAX_NAME_BYTES: usize = 63;

/// A table's name with its schema.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct TableName {
    /// The schema.
    pub schema: String,
    /// The table.
    pub name: String,
}

impl TableName {
    /// Reads `schema.name`, or a name alone, which is in `schema`; double quotes as in SQL, and what has none in lower
    /// case.
    #[must_use]
    pub fn parse(text: &str, schema: &str) -> Option<TableName> {
        let mut parts: Vec<String> = vec![String::new()];
        let mut quoted = false;
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let last = parts.last_mut()?;
            match character {
                '"' if quoted && characters.next_if_eq(&'"').is_some() => last.push('"'),
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                other if quoted => last.push(other),
                other => last.extend(other.to_lowercase()),
            }
        }
        let whole = !quoted && parts.iter().all(|part| !part.is_empty() && part.len() <= MAX_NAME_BYTES);
        match (whole, parts.as_slice()) {
            (true, [name]) => Some(TableName { schema: schema.to_owned(), name: name.clone() }),
            (true, [schema, name]) => Some(TableName { schema: schema.clone(), name: name.clone() }),
            _ => None,
        }
    }

    /// As SQL has it, and as a pattern of `pg_dump` that fits it alone.
    pub(super) fn to_sql(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.name))
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::TableName;

    #[test]
    fn names_are_read_as_sql_reads_them() {
        let read = |text: &str| TableName::parse(text, "public").map(|name| (name.schema, name.name));
        let pair = |schema: &str, name: &str| Some((schema.to_owned(), name.to_owned()));
        assert_eq!(read("orders"), pair("public", "orders"));
        assert_eq!(read("Sales.Orders"), pair("sales", "orders"));
        assert_eq!(read("\"Sales\".\"my.Orders\""), pair("Sales", "my.Orders"));
        assert_eq!(read("\"a\"\"b\""), pair("public", "a\"b"));
        for wrong in ["", "a.", ".a", "a.b.c", "\"a", &"x".repeat(64)] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
