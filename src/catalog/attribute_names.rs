//! Attributes of composite types that have other names at the source than here.
//!
//! Asked when a stream begins, when a described table does not fit, and when rows are to be copied. Values of a composite type are
//! sent as text, attribute by attribute in their order, so a name can be changed at any time. The fingerprint has compared the
//! attributes' numbers and types before: what still differs is the name alone.

use crate::catalog::schema::{BothTypes, TypeAttribute, TypeDefinition, TypeKind, Types};
use crate::catalog::value_format::{Carried, carries, type_sql};
use crate::pg::{Ident, QualifiedName};

/// What brings the names of one type's attributes to the source's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeNames {
    /// The type.
    pub name: QualifiedName,
    /// Statements, for one transaction: names may change hands.
    pub statements: Vec<String>,
}

/// Compares the composite types that both ends have. A type whose attributes differ in more than their names is not among them.
pub fn attribute_names(source: &Types, destination: &Types) -> Vec<AttributeNames> {
    let mut here = destination.clone();
    let mut found = Vec::new();
    // A type fits only once those fit that it is made of.
    loop {
        let renamed: Vec<(QualifiedName, Vec<(Ident, Ident)>)> = source
            .values()
            .filter_map(|from| {
                Some((from.qualified_name(), differing_names(from, BothTypes { source, destination: &here })?))
            })
            .collect();
        if renamed.is_empty() {
            return found;
        }
        for (name, pairs) in renamed {
            for to in here.values_mut().filter(|to| to.qualified_name() == name) {
                let attributes = to.attributes.iter_mut().flatten().zip(&pairs);
                attributes.for_each(|(attribute, (_, now))| attribute.name = now.clone());
            }
            found.push(AttributeNames { statements: rename(&name, &pairs), name });
        }
    }
}

/// Each attribute's name here and at the source, in their order; `None` where nothing or more than names differs.
fn differing_names(
    from: &TypeDefinition,
    BothTypes { source, destination: here }: BothTypes<'_>,
) -> Option<Vec<(Ident, Ident)>> {
    let wanted = from.attributes.as_ref().filter(|_| from.kind == TypeKind::Composite)?;
    let name = from.qualified_name();
    let to = here.values().find(|to| to.kind == TypeKind::Composite && to.qualified_name() == name)?;
    let found = to.attributes.as_ref().filter(|found| found.len() == wanted.len())?;
    let fits = wanted.iter().zip(found).all(|(wanted, found)| {
        let wanted = Carried::of(wanted.type_id, wanted.type_modifier, source);
        let found = Carried::of(found.type_id, found.type_modifier, here);
        wanted.zip(found).is_some_and(|(wanted, found)| carries(wanted, found).is_some())
    });
    let pairs: Vec<(Ident, Ident)> = found.iter().zip(wanted).map(|(f, w)| (f.name.clone(), w.name.clone())).collect();
    (fits && pairs.iter().any(|(found, wanted)| found != wanted)).then_some(pairs)
}

fn rename(name: &QualifiedName, pairs: &[(Ident, Ident)]) -> Vec<String> {
    let differing: Vec<&(Ident, Ident)> = pairs.iter().filter(|(found, wanted)| found != wanted).collect();
    let hands_change = differing.iter().any(|(_, wanted)| pairs.iter().any(|(found, _)| found == wanted));
    if !hands_change {
        return differing.iter().map(|(found, wanted)| rename_attribute(name, found, wanted)).collect();
    }
    let between: Vec<Ident> = (0..differing.len()).map(|n| Ident::new(format!("headwater renames {n}"))).collect();
    let away = differing.iter().zip(&between).map(|((found, _), between)| rename_attribute(name, found, between));
    let back = differing.iter().zip(&between).map(|((_, wanted), between)| rename_attribute(name, between, wanted));
    away.chain(back).collect()
}

/// Of typed tables' columns, too.
fn rename_attribute(composite: &QualifiedName, from: &Ident, to: &Ident) -> String {
    format!("ALTER TYPE {} RENAME ATTRIBUTE {} TO {} CASCADE", composite.sql(), from.sql(), to.sql())
}

/// The statement, as an operator may run it, that gives a type the source's attributes: all from the first on that differs, in
/// their order. `None` where a type is not described.
pub(crate) fn replace_attributes(from: Carried<'_>, to: Carried<'_>) -> Option<String> {
    let (wanted, found) = (from.definition.attributes.as_ref()?, to.definition.attributes.as_ref()?);
    let is_same = |(wanted, found): &(&TypeAttribute, &TypeAttribute)| {
        let a = Carried::of(wanted.type_id, wanted.type_modifier, from.types);
        let b = Carried::of(found.type_id, found.type_modifier, to.types);
        wanted.name == found.name && a.zip(b).is_some_and(|(a, b)| carries(a, b).is_some())
    };
    let same = wanted.iter().zip(found).take_while(is_same).count();
    let drop = found.iter().skip(same).map(|attribute| Some(format!("DROP ATTRIBUTE {}", attribute.name)));
    let add = wanted.iter().skip(same).map(|attribute| {
        let of_type = type_sql(attribute.type_id, attribute.type_modifier, from.types)?;
        let collate = attribute.collation.as_ref().map_or(String::new(), |collation| format!(" COLLATE {collation}"));
        Some(format!("ADD ATTRIBUTE {} {of_type}{collate}", attribute.name))
    });
    let actions: Vec<String> = drop.chain(add).collect::<Option<_>>()?;
    Some(format!("ALTER TYPE {} {};", from.definition.qualified_name(), actions.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TypeId;
    use crate::testing::types;

    const TEXT: u32 = 25;
    const INT4: u32 = 23;

    fn composite(types: &mut Types, id: u32, attributes: &[(&str, u32)]) {
        let text = types.get(&TypeId(TEXT)).cloned().unwrap();
        let attributes = attributes.iter().map(|(name, of)| TypeAttribute {
            name: Ident::new(*name),
            type_id: TypeId(*of),
            type_modifier: -1,
            collation: None,
            nondeterministic: None,
        });
        let definition = TypeDefinition {
            id: TypeId(id),
            schema: Ident::new("public"),
            name: Ident::new(format!("t{id}")),
            kind: TypeKind::Composite,
            attributes: Some(attributes.collect()),
            ..text
        };
        types.insert(TypeId(id), definition);
    }

    fn with(of: &[(u32, &[(&str, u32)])]) -> Types {
        let mut types = types();
        of.iter().for_each(|(id, attributes)| composite(&mut types, *id, attributes));
        types
    }

    #[test]
    fn attributes_with_other_names_are_renamed_even_when_names_are_swapped_or_nested() {
        let statements = |source: &Types, destination: &Types| -> Vec<String> {
            attribute_names(source, destination).into_iter().flat_map(|names| names.statements).collect()
        };
        let rename = |id: u32, from: &str, to: &str| {
            format!("ALTER TYPE \"public\".\"t{id}\" RENAME ATTRIBUTE \"{from}\" TO \"{to}\" CASCADE")
        };
        let pair: (u32, &[(&str, u32)]) = (20_000, &[("a", INT4), ("b", TEXT)]);
        let of = |names: [&'static str; 2]| with(&[(20_000, &[(names[0], INT4), (names[1], TEXT)])]);
        assert_eq!(statements(&with(&[pair]), &with(&[pair])), Vec::<String>::new());
        assert_eq!(statements(&of(["a", "d"]), &with(&[pair])), [rename(20_000, "b", "d")]);
        let (first, second) = ("headwater renames 0", "headwater renames 1");
        let swapped = [
            rename(20_000, "a", first),
            rename(20_000, "b", second),
            rename(20_000, first, "b"),
            rename(20_000, second, "a"),
        ];
        assert_eq!(statements(&of(["b", "a"]), &with(&[pair])), swapped);
        for other in [&[("x", INT4)][..], &[("x", INT4), ("y", INT4)], &[("x", INT4), ("y", TEXT), ("z", TEXT)]] {
            assert_eq!(statements(&with(&[(20_000, other)]), &with(&[pair])), Vec::<String>::new(), "{other:?}");
        }
        let around = |inner: &'static str, outer: &'static str| {
            with(&[(20_000, &[(inner, INT4)]), (20_001, &[(outer, 20_000)])])
        };
        assert_eq!(
            statements(&around("x", "y"), &around("a", "b")),
            [rename(20_000, "a", "x"), rename(20_001, "b", "y")]
        );
    }
}
