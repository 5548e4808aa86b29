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

/// The images of both ends' types.
pub(crate) struct BothImages<'a> {
    pub(crate) source: Images<'a>,
    pub(crate) destination: Images<'a>,
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

    /// The image of a type's values.
    pub(crate) fn of(&self, id: TypeId) -> ChosenImage {
        let exact = ChosenImage::exact(Image::Text);
        let Some(definition) = self.types.get(&id).filter(|_| !id.is_built_in()) else { return exact };
        if let Some(element) = definition.element {
            return match self.of(element) {
                ChosenImage { image: Image::Text, is_doubtful } => ChosenImage { image: Image::Text, is_doubtful },
                ChosenImage { image, is_doubtful } => {
                    ChosenImage { image: Image::Elements(Box::new(image)), is_doubtful }
                }
            };
        }
        match definition.kind {
            TypeKind::Domain => definition.base.map_or(exact, |base| self.of(base)),
            TypeKind::Composite => {
                let attributes = definition.attributes.iter().flatten();
                let parts: Vec<_> =
                    attributes.map(|attribute| (attribute.name.clone(), self.of(attribute.type_id))).collect();
                let is_doubtful = parts.iter().any(|(_, chosen)| chosen.is_doubtful);
                if parts.iter().all(|(_, chosen)| chosen.image == Image::Text) {
                    return ChosenImage { image: Image::Text, is_doubtful };
                }
                let attributes = parts.into_iter().map(|(name, chosen)| (name, chosen.image)).collect();
                ChosenImage { image: Image::Attributes(attributes), is_doubtful }
            }
            TypeKind::Base => match self.senders.get(&id) {
                Some(Some(function)) => ChosenImage::exact(Image::Sent(function.clone())),
                Some(None) => exact,
                None => ChosenImage { image: Image::Text, is_doubtful: true },
            },
            TypeKind::Enum | TypeKind::Multirange | TypeKind::Pseudo | TypeKind::Range => exact,
        }
    }
}

/// How the values of a column are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChosenImage {
    pub(crate) image: Image,
    /// It may say less than the value.
    pub(crate) is_doubtful: bool,
}

impl ChosenImage {
    fn exact(image: Image) -> ChosenImage {
        ChosenImage { image, is_doubtful: false }
    }
}

/// The images by which two columns are compared. Types that are not alike are compared
/// by their texts.
pub(crate) fn pair(source: ChosenImage, destination: ChosenImage) -> [ChosenImage; 2] {
    if source.image.is_like(&destination.image) {
        return [source, destination];
    }
    [source, destination].map(|ChosenImage { image, is_doubtful }| ChosenImage {
        is_doubtful: is_doubtful || image != Image::Text,
        image: Image::Text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(image: Image) -> ChosenImage {
        ChosenImage::exact(image)
    }

    fn doubtful() -> ChosenImage {
        ChosenImage { image: Image::Text, is_doubtful: true }
    }

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
        assert_eq!(images.of(TypeId(23)), exact(Image::Text));
        assert_eq!(images.of(TypeId(20_000)), exact(thing()));
        assert_eq!(images.of(TypeId(20_001)), exact(Image::Text), "it sends its text");
        assert_eq!(images.of(TypeId(20_002)), doubtful());
        assert_eq!(images.of(TypeId(20_004)), exact(Image::Elements(Box::new(thing()))));
        assert_eq!(images.of(TypeId(20_005)), exact(Image::Text));
        assert_eq!(images.of(TypeId(20_007)), doubtful());
        let ChosenImage { image, is_doubtful } = images.of(TypeId(20_006));
        assert!(matches!(&image, Image::Attributes(parts) if parts.len() == 2) && !is_doubtful, "{image:?}");
        let [there, here] = pair(exact(thing()), exact(Image::Text));
        assert_eq!((there, here), (doubtful(), exact(Image::Text)), "another type here");
    }
}
