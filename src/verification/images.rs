//! Which image of a column's values tells them apart exactly, on both servers.
//!
//! Asked by `tables`. Built-in types have texts that say all of their values, with the settings that our sessions pin. The base types
//! of extensions need not: what their send functions give is taken instead, inside arrays and composites, too. A type without a send
//! function is compared by its text, and is *doubtful*: the servers are asked whether each value is what its text says.

use std::collections::BTreeMap;

use super::workers::Side;
use crate::catalog::schema::{TypeKind, Types};
use crate::comparison::images::Image;
use crate::error_policy::Fault;
use crate::pg::{QualifiedName, TypeId};
use crate::session::SqlClient;

/// The send functions of one server's base types that are not built in; `None` for a type whose text is what it sends.
type Senders = BTreeMap<TypeId, Option<QualifiedName>>;

/// One server's types.
pub(crate) struct Images<'a> {
    types: &'a Types,
    senders: Senders,
}

impl<'a> Images<'a> {
    /// Reads what `types` are sent by.
    pub(crate) async fn read(client: &SqlClient, side: Side, types: &'a Types) -> Result<Images<'a>, Fault> {
        let base = |id: &&TypeId| !id.is_built_in() && types.get(id).is_some_and(|found| found.kind == TypeKind::Base);
        let ids: Vec<u32> = types.keys().filter(base).map(|id| id.0).collect();
        let mut senders = Senders::new();
        if !ids.is_empty() {
            let sql = "SELECT t.oid, n.nspname::text, p.proname::text,
                              l.lanname = 'internal' AND p.prosrc IN ('textsend', 'varcharsend', 'bpcharsend')
                       FROM pg_catalog.pg_type t JOIN pg_catalog.pg_proc p ON p.oid = t.typsend
                       JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
                       JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE t.oid = ANY ($1)";
            let rows = client.query("looking for send functions", sql, &[&ids]).await;
            for row in rows.map_err(|error| side.fault(error))? {
                let read = || {
                    let function = QualifiedName::new(row.get::<&str>(1)?, row.get::<&str>(2)?);
                    Ok((TypeId(row.get(0)?), (!row.get::<bool>(3)?).then_some(function)))
                };
                let (id, function) = read().map_err(|error| side.fault(error))?;
                senders.insert(id, function);
            }
        }
        Ok(Images { types, senders })
    }

    /// The image of a type's values, and whether it may say less than they are.
    pub(crate) fn of(&self, id: TypeId) -> (Image, bool) {
        let exact = (Image::Text, false);
        let Some(definition) = self.types.get(&id).filter(|_| !id.is_built_in()) else { return exact };
        if let Some(element) = definition.element {
            return match self.of(element) {
                (Image::Text, doubtful) => (Image::Text, doubtful),
                (element, doubtful) => (Image::Elements(Box::new(element)), doubtful),
            };
        }
        match definition.kind {
            TypeKind::Domain => definition.base.map_or(exact, |base| self.of(base)),
            TypeKind::Composite => {
                let attributes = definition.attributes.iter().flatten();
                let parts: Vec<_> =
                    attributes.map(|attribute| (attribute.name.clone(), self.of(attribute.type_id))).collect();
                let doubtful = parts.iter().any(|(_, (_, doubtful))| *doubtful);
                if parts.iter().all(|(_, (image, _))| *image == Image::Text) {
                    return (Image::Text, doubtful);
                }
                (Image::Attributes(parts.into_iter().map(|(name, (image, _))| (name, image)).collect()), doubtful)
            }
            TypeKind::Base => match self.senders.get(&id) {
                Some(Some(function)) => (Image::Sent(function.clone()), false),
                Some(None) => exact,
                None => (Image::Text, true),
            },
            TypeKind::Enum | TypeKind::Multirange | TypeKind::Pseudo | TypeKind::Range => exact,
        }
    }
}

/// The images by which two columns are compared, and whether each may say less than its value. Types that are not alike are compared
/// by their texts.
pub(crate) fn pair(source: (Image, bool), destination: (Image, bool)) -> [(Image, bool); 2] {
    if source.0.is_like(&destination.0) {
        return [source, destination];
    }
    [source, destination].map(|(image, doubtful)| (Image::Text, doubtful || image != Image::Text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(types: &Types) -> Images<'_> {
        let sender = |name: &str| Some(QualifiedName::new("ext", name));
        let senders = [(TypeId(20_000), sender("thing_send")), (TypeId(20_001), None)];
        Images { types, senders: senders.into_iter().collect() }
    }

    fn types() -> Types {
        let json = r#"[
            {"id": 20000, "name": "thing", "kind": "b"}, {"id": 20001, "name": "citext", "kind": "b"},
            {"id": 20002, "name": "seg", "kind": "b"}, {"id": 20003, "name": "_thing", "kind": "b", "element": 20000},
            {"id": 20004, "name": "of", "kind": "d", "base": 20003}, {"id": 20005, "name": "mood", "kind": "e"},
            {"id": 20006, "name": "pair", "kind": "c", "attributes": [{"name": "a", "type_id": 20005, "type_modifier": -1},
                {"name": "b", "type_id": 20004, "type_modifier": -1}]},
            {"id": 20007, "name": "_seg", "kind": "b", "element": 20002}]"#;
        let mut list: Vec<serde_json::Value> = serde_json::from_str(json).unwrap();
        for one in &mut list {
            let defaults = serde_json::json!({
                "schema": "ext", "category": "U", "base": null, "base_modifier": -1, "element": null, "array": null, "delimiter": ",",
                "not_null": false, "has_binary": true, "labels": null, "attributes": null, "checks": null, "equality": null,
                "extension": "ext"
            });
            for (name, value) in defaults.as_object().unwrap() {
                one.as_object_mut().unwrap().entry(name).or_insert(value.clone());
            }
        }
        list.into_iter()
            .map(|one| {
                let found: crate::catalog::schema::TypeDefinition = serde_json::from_value(one).unwrap();
                (found.id, found)
            })
            .collect()
    }

    #[test]
    fn only_types_of_extensions_are_sent_and_those_that_cannot_be_are_doubtful() {
        let types = types();
        let images = images(&types);
        let thing = || Image::Sent(QualifiedName::new("ext", "thing_send"));
        assert_eq!(images.of(TypeId(23)), (Image::Text, false));
        assert_eq!(images.of(TypeId(20_000)), (thing(), false));
        assert_eq!(images.of(TypeId(20_001)), (Image::Text, false), "it sends its text");
        assert_eq!(images.of(TypeId(20_002)), (Image::Text, true));
        assert_eq!(images.of(TypeId(20_004)), (Image::Elements(Box::new(thing())), false));
        assert_eq!(images.of(TypeId(20_005)), (Image::Text, false));
        assert_eq!(images.of(TypeId(20_007)), (Image::Text, true));
        let (image, doubtful) = images.of(TypeId(20_006));
        assert!(matches!(&image, Image::Attributes(parts) if parts.len() == 2) && !doubtful, "{image:?}");
        let [there, here] = pair((thing(), false), (Image::Text, false));
        assert_eq!((there, here), ((Image::Text, true), (Image::Text, false)), "another type here");
    }
}
