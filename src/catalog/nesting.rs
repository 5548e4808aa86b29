//! How deeply types are made of other types: bounded, before anything goes down into them.
//!
//! Pure. Asked by `session` for whatever a server has described. PostgreSQL makes no type that is made of itself, and takes minutes to
//! make one of thirty composites that each hold the one before twice; but a server may say what it likes, and a superuser may
//! write it into pg_type. All code that walks a type's parts relies on these bounds: recursion ends, and soon.

use std::collections::BTreeMap;

use super::schema::{TypeDefinition, Types};
use crate::pg::TypeId;

/// From a type down to what is made of nothing else.
const DEPTH_MAX: usize = 100;
/// Parts of a type, each counted as often as it occurs.
const PARTS_MAX: u64 = 100_000;

/// What is wrong with types that are made of themselves or of too much; `None` for all others.
pub fn nesting_problem(types: &Types) -> Option<String> {
    let mut known = BTreeMap::new();
    let mut too_deep = types.keys().filter(|id| measure(types, **id, 0, &mut known).is_none());
    too_deep.next().map(|id| {
        format!("type {id} is made of itself, of types more than {DEPTH_MAX} deep or of more than {PARTS_MAX} parts")
    })
}

/// What a type is made of.
#[derive(Clone, Copy)]
struct Measure {
    depth: usize,
    parts: u64,
}

/// `None` beyond the bounds. The first way down that is too long ends it, so that a circle costs no more than that.
fn measure(types: &Types, id: TypeId, above: usize, known: &mut BTreeMap<TypeId, Measure>) -> Option<Measure> {
    let measured = match known.get(&id) {
        Some(measured) => *measured,
        None if above >= DEPTH_MAX => return None,
        None => {
            let mut measured = Measure { depth: 1, parts: 1 };
            for part in types.get(&id).into_iter().flat_map(parts) {
                let part = measure(types, part, above + 1, known)?;
                measured.depth = measured.depth.max(part.depth + 1);
                measured.parts = measured.parts.saturating_add(part.parts);
            }
            known.insert(id, measured);
            measured
        }
    };
    (above + measured.depth <= DEPTH_MAX && measured.parts <= PARTS_MAX).then_some(measured)
}

fn parts(definition: &TypeDefinition) -> impl Iterator<Item = TypeId> {
    let attributes = definition.attributes.iter().flatten().map(|attribute| attribute.type_id);
    [definition.element, definition.base, definition.subtype].into_iter().flatten().chain(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::schema::TypeAttribute;
    use crate::pg::Ident;
    use crate::testing;

    /// A type with attributes of these types.
    fn composite(id: u32, parts: &[u32]) -> TypeDefinition {
        let attribute = |part: &u32| TypeAttribute {
            name: Ident::new("a"),
            type_id: TypeId(*part),
            type_modifier: -1,
            collation: None,
            nondeterministic: None,
        };
        let text = testing::types().remove(&TypeId(25)).expect("text");
        TypeDefinition { id: TypeId(id), attributes: Some(parts.iter().map(attribute).collect()), ..text }
    }

    fn types(of: &[(u32, &[u32])]) -> Types {
        of.iter().map(|(id, parts)| (TypeId(*id), composite(*id, parts))).collect()
    }

    #[test]
    fn a_type_that_is_made_of_itself_is_a_problem() {
        assert_eq!(nesting_problem(&types(&[(20_000, &[23]), (20_001, &[20_000, 20_000, 23])])), None);
        for circle in [
            types(&[(20_000, &[20_000])]),
            types(&[(20_000, &[20_001, 20_001]), (20_001, &[20_002, 20_002]), (20_002, &[20_000, 20_000])]),
        ] {
            assert!(nesting_problem(&circle).is_some());
        }
        for through in [0, 1, 2] {
            let mut definition = composite(20_000, &[]);
            let own = Some(definition.id);
            match through {
                0 => definition.element = own,
                1 => definition.base = own,
                _ => definition.subtype = own,
            }
            assert!(nesting_problem(&[(definition.id, definition)].into()).is_some(), "{through}");
        }
    }

    #[test]
    fn a_type_of_too_many_parts_or_too_deep_is_a_problem() {
        let chain = |length: u32, each: usize| -> Types {
            let of = |n: u32| vec![if n == 0 { 23 } else { 20_000 + n - 1 }; each];
            (0..length).map(|n| (TypeId(20_000 + n), composite(20_000 + n, &of(n)))).collect()
        };
        assert_eq!(nesting_problem(&chain(99, 1)), None);
        assert!(nesting_problem(&chain(100, 1)).is_some(), "with the attribute at the bottom it is 101 deep");
        assert!(nesting_problem(&chain(50_000, 1)).is_some());
        assert_eq!(nesting_problem(&chain(14, 2)), None);
        assert!(nesting_problem(&chain(28, 2)).is_some());
        assert_eq!(nesting_problem(&chain(1, 1_600)), None, "a wide row is none");
    }
}
