//! Whether a type at the destination holds every value of one at the source, and in which format values travel between them.
//!
//! Asked by `fit` for columns, and by itself for what a type is made of: a domain's base, an array's elements, a composite's
//! attributes, a range's bounds. So a domain of the same name over another base, or with another modifier, is no other than a
//! column that differs so.
//!
//! Binary where both ends have the same built-in type in the same form, an enum, the type of an extension in the same version with
//! send and receive functions, or a domain, an array, a composite or a range over what travels so; otherwise text. Why so narrow: a
//! binary value is the type's memory, near enough. Extensions may differ in version; the reg* types are OIDs. Text is understood by
//! every server that knows the type.
//!
//! Arrays and composites name the types of what they hold by OIDs, which differ between servers for user types. The receive functions
//! compare only OIDs that initdb assigns, and read everything else as what they expect (array_recv, record_recv; tried on 14 to 18).

use crate::catalog::schema::{TypeDefinition, TypeKind, Types};
use crate::pg::{Ident, TypeId};

/// The format in which values travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transfer {
    /// The types' send and receive functions.
    Binary,
    /// The types' output and input functions.
    Text,
}

/// A type with its modifier, at one end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried<'a> {
    pub(crate) definition: &'a TypeDefinition,
    pub(crate) modifier: i32,
    pub(crate) types: &'a Types,
}

impl<'a> Carried<'a> {
    /// A type by its OID.
    pub(crate) fn of(id: TypeId, modifier: i32, types: &'a Types) -> Option<Carried<'a>> {
        Some(Carried { definition: types.get(&id)?, modifier, types })
    }

    pub(crate) fn element(self) -> Option<Carried<'a>> {
        Carried::of(self.definition.element?, self.modifier, self.types)
    }

    /// The elements of arrays, down to what is no array.
    pub(crate) fn innermost(self) -> Carried<'a> {
        self.element().map_or(self, Carried::innermost)
    }

    /// What a domain is over; the modifier is the domain's.
    pub(crate) fn base(self) -> Option<Carried<'a>> {
        Carried::of(self.definition.base?, self.definition.base_modifier, self.types)
    }

    /// What a range's bounds are, or those of a multirange's ranges.
    fn subtype(self) -> Option<Carried<'a>> {
        Carried::of(self.definition.subtype?, -1, self.types)
    }

    /// A composite's attributes.
    pub(crate) fn attributes(self) -> impl Iterator<Item = Carried<'a>> {
        let attributes = self.definition.attributes.iter().flatten();
        attributes.filter_map(move |a| Carried::of(a.type_id, a.type_modifier, self.types))
    }

    /// All that it is made of, in an order of its own.
    fn parts(self) -> Vec<Carried<'a>> {
        [self.element(), self.base(), self.subtype()].into_iter().flatten().chain(self.attributes()).collect()
    }
}

/// How values get from one type to the other; `None` where the destination's does not hold all of them unchanged.
pub(crate) fn carries(from: Carried<'_>, to: Carried<'_>) -> Option<Transfer> {
    let (source, destination) = (from.definition, to.definition);
    if source.id == destination.id && source.id.is_built_in() {
        return modifier_fits(source, from.modifier, to.modifier).then(|| built_in(from, to));
    }
    if let (Some(from), Some(to)) = (from.element(), to.element()) {
        return carries(from, to);
    }
    if source.id.is_built_in() || destination.id.is_built_in() {
        let widened = widens(source.id, destination.id) && to.modifier == -1;
        return widened.then_some(Transfer::Text);
    }
    let same_name = source.kind == destination.kind && source.qualified_name() == destination.qualified_name();
    let is_array = source.element.is_some() || destination.element.is_some();
    if !same_name || is_array {
        return None;
    }
    match source.kind {
        TypeKind::Enum => Some(if both_binary(from, to) { Transfer::Binary } else { Transfer::Text }),
        TypeKind::Domain => {
            let through = carries(from.base()?, to.base()?)?;
            Some(if both_binary(from, to) { through } else { Transfer::Text })
        }
        TypeKind::Composite => {
            let attributes = |definition: &TypeDefinition| definition.attributes.clone().unwrap_or_default();
            let (ours, theirs) = (attributes(source), attributes(destination));
            let each = ours.iter().zip(&theirs).map(|(a, b)| {
                let a_type = Carried::of(a.type_id, a.type_modifier, from.types)?;
                let b_type = Carried::of(b.type_id, b.type_modifier, to.types)?;
                carries(a_type, b_type).filter(|_| a.name == b.name)
            });
            let each: Vec<Transfer> = each.collect::<Option<_>>()?;
            (ours.len() == theirs.len()).then(|| each.into_iter().max().unwrap_or(Transfer::Binary))
        }
        TypeKind::Range | TypeKind::Multirange => match (from.subtype(), to.subtype()) {
            (Some(from), Some(to)) => carries(from, to),
            // Not described: the name is what there is.
            (None, _) | (_, None) => Some(Transfer::Text),
        },
        TypeKind::Base => {
            // The modifier is the extension's own affair.
            let fits = from.modifier == to.modifier || to.modifier == -1;
            let same_version = source.extension.is_some()
                && source.extension == destination.extension
                && source.extension_version == destination.extension_version;
            let binary = same_version && both_binary(from, to);
            fits.then_some(if binary { Transfer::Binary } else { Transfer::Text })
        }
        TypeKind::Pseudo => Some(Transfer::Text),
    }
}

fn both_binary(from: Carried<'_>, to: Carried<'_>) -> bool {
    from.definition.has_binary && to.definition.has_binary
}

/// xml's binary form names an encoding; an empty tsquery, int2vector or oidvector is sent in a form that the type's own receive
/// function refuses (tried on 15 to 18).
const TEXT_ONLY: [u32; 4] = [142, 3615, 22, 30];

/// The format of a built-in type that both ends have.
fn built_in(from: Carried<'_>, to: Carried<'_>) -> Transfer {
    let definition = from.definition;
    // The reg* types, of later majors too, are OIDs that mean nothing on another server.
    let names_object = definition.kind == TypeKind::Base && definition.name.as_str().starts_with("reg");
    let whole = both_binary(from, to)
        && !names_object
        && !TEXT_ONLY.contains(&definition.id.0)
        && definition.binary_form == to.definition.binary_form;
    let parts = [from.element().zip(to.element()), from.subtype().zip(to.subtype())];
    let parts_too = parts.into_iter().flatten().all(|(from, to)| built_in(from, to) == Transfer::Binary);
    if whole && parts_too { Transfer::Binary } else { Transfer::Text }
}

/// Whether the text of a type, or of what it is made of, means another value to the other server's major.
pub(crate) fn text_differs(from: Carried<'_>, to: Carried<'_>) -> bool {
    let own = from.definition.id == to.definition.id && from.definition.text_form != to.definition.text_form;
    own || from.parts().into_iter().zip(to.parts()).any(|(from, to)| text_differs(from, to))
}

/// What a type is, as CREATE would have it, for what has one name and is not one type.
pub(crate) fn definition_sql(carried: Carried<'_>) -> Option<String> {
    let Carried { definition, types, .. } = carried;
    let sql = |id, modifier| type_sql(id, modifier, types);
    match definition.kind {
        TypeKind::Domain => sql(definition.base?, definition.base_modifier),
        TypeKind::Composite => {
            let attributes = definition.attributes.iter().flatten();
            let each = attributes.map(|a| Some(format!("{} {}", a.name, sql(a.type_id, a.type_modifier)?)));
            Some(format!("({})", each.collect::<Option<Vec<_>>>()?.join(", ")))
        }
        TypeKind::Range => Some(format!("RANGE (SUBTYPE = {})", sql(definition.subtype?, -1)?)),
        TypeKind::Base | TypeKind::Enum | TypeKind::Multirange | TypeKind::Pseudo => None,
    }
}

const BPCHAR: u32 = 1042;
const VARCHAR: u32 = 1043;
const TEXT: u32 = 25;
const BIT: u32 = 1560;
const VARBIT: u32 = 1562;
const NUMERIC: u32 = 1700;
/// timestamp, timestamptz, time, timetz: the modifier is the number of digits after the second.
const WITH_PRECISION: [u32; 4] = [1114, 1184, 1083, 1266];

/// Whether every value of the source's modifier is a value of the destination's, unchanged. An array's modifier is its
/// elements'.
pub(crate) fn modifier_fits(definition: &TypeDefinition, from: i32, to: i32) -> bool {
    if from == to || to == -1 {
        return true;
    }
    if from == -1 {
        return false;
    }
    match definition.element.unwrap_or(definition.id).0 {
        VARCHAR | VARBIT => to > from,
        NUMERIC => scale(to) == scale(from) && to > from,
        id if WITH_PRECISION.contains(&id) => to > from,
        _ => false,
    }
}

/// Types that hold every value of another with the same meaning, read from its text.
pub(crate) fn widens(from: TypeId, to: TypeId) -> bool {
    const INT2: u32 = 21;
    const INT4: u32 = 23;
    const INT8: u32 = 20;
    const FLOAT4: u32 = 700;
    const FLOAT8: u32 = 701;
    matches!(
        (from.0, to.0),
        (INT2, INT4 | INT8 | NUMERIC)
            | (INT4, INT8 | NUMERIC)
            | (INT8, NUMERIC)
            | (VARCHAR, TEXT)
            | (TEXT, VARCHAR)
            | (FLOAT4, FLOAT8)
    )
}

/// The precision of a numeric's modifier: ((precision << 16) | (scale & 0x7ff)) + 4 (numeric.c).
const fn precision(modifier: i32) -> i32 {
    ((modifier - 4) >> 16) & 0xFFFF
}

/// Its scale, 11 bits with a sign: from 15 on it may be negative, or larger than the precision.
const fn scale(modifier: i32) -> i32 {
    (((modifier - 4) & 0x7FF) ^ 1024) - 1024
}

/// The first `server_version_num` that knows scales below zero and above the precision.
const ANY_SCALE: u32 = 150_000;

/// The modifier that a column gets at a destination of this `server_version_num`: none where the server does not know the
/// source's. So it holds all values.
pub fn modifier_at(id: TypeId, modifier: i32, types: &Types, version: u32) -> i32 {
    let id = types.get(&id).and_then(|definition| definition.element).unwrap_or(id);
    let is_late = id.0 == NUMERIC && modifier != -1 && !(0..=precision(modifier)).contains(&scale(modifier));
    if is_late && version < ANY_SCALE { -1 } else { modifier }
}

/// A type as SQL, for people to read and run.
pub fn type_sql(id: TypeId, modifier: i32, types: &Types) -> Option<String> {
    let definition = types.get(&id)?;
    if let Some(element) = definition.element {
        return type_sql(element, modifier, types).map(|sql| format!("{sql}[]"));
    }
    if !definition.id.is_built_in() {
        return Some(definition.qualified_name().to_string());
    }
    Some(format!("{}{}", built_in_name(&definition.name), modifier_sql(id, modifier)))
}

/// A built-in type's name: `"char"` is no `char`, which is bpchar(1).
fn built_in_name(name: &Ident) -> String {
    match name.as_str() {
        "char" => "\"char\"".to_owned(),
        name => name.to_owned(),
    }
}

/// A built-in type's modifier as SQL, with its parentheses.
pub fn modifier_sql(id: TypeId, modifier: i32) -> String {
    match id.0 {
        _ if modifier == -1 => String::new(),
        VARCHAR | BPCHAR => format!("({})", modifier - 4),
        NUMERIC => format!("({},{})", precision(modifier), scale(modifier)),
        id if WITH_PRECISION.contains(&id) || id == VARBIT || id == BIT => format!("({modifier})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::schema::TypeAttribute;
    use crate::testing::types;

    /// A user type over the built-in ones.
    fn with(types: &mut Types, id: u32, change: impl FnOnce(&mut TypeDefinition)) -> TypeId {
        let mut definition = types.get(&TypeId(TEXT)).cloned().unwrap();
        (definition.id, definition.schema, definition.name) =
            (TypeId(id), Ident::new("public"), Ident::new(format!("t{id}")));
        change(&mut definition);
        types.insert(TypeId(id), definition);
        TypeId(id)
    }

    fn domain(base: u32, modifier: i32) -> Types {
        let mut types = types();
        with(&mut types, 20_000, |d| {
            (d.kind, d.base, d.base_modifier) = (TypeKind::Domain, Some(TypeId(base)), modifier)
        });
        types
    }

    fn carried(from: &Types, to: &Types) -> Option<Transfer> {
        let of = |types| Carried::of(TypeId(20_000), -1, types).unwrap();
        carries(of(from), of(to))
    }

    #[test]
    fn a_domain_is_what_it_is_over() {
        let money2 = |modifier| domain(NUMERIC, modifier);
        // numeric(20,6), numeric(20,2), numeric(22,6)
        let (six, two, wider) =
            (money2(((20 << 16) | 6) + 4), money2(((20 << 16) | 2) + 4), money2(((22 << 16) | 6) + 4));
        assert_eq!(carried(&six, &six), Some(Transfer::Binary));
        assert_eq!(carried(&six, &two), None);
        assert_eq!(carried(&six, &wider), Some(Transfer::Binary));
        assert_eq!(carried(&domain(23, -1), &domain(20, -1)), Some(Transfer::Text));
        assert_eq!(carried(&domain(20, -1), &domain(23, -1)), None);
    }

    #[test]
    fn a_composite_is_its_attributes_in_their_order() {
        let composite = |attributes: &[(&str, u32)]| {
            let mut types = types();
            let attribute = |(name, id): &(&str, u32)| TypeAttribute {
                name: Ident::new(*name),
                type_id: TypeId(*id),
                type_modifier: -1,
                collation: None,
                nondeterministic: None,
            };
            let attributes = attributes.iter().map(attribute).collect();
            with(&mut types, 20_000, |d| (d.kind, d.attributes) = (TypeKind::Composite, Some(attributes)));
            types
        };
        let pair = composite(&[("a", 23), ("b", 25)]);
        assert_eq!(carried(&pair, &pair), Some(Transfer::Binary));
        assert_eq!(carried(&pair, &composite(&[("a", 20), ("b", 25)])), Some(Transfer::Text));
        assert_eq!(carried(&composite(&[]), &composite(&[])), Some(Transfer::Binary));
        for other in [&[("b", 25), ("a", 23)][..], &[("a", 23)], &[("a", 23), ("b", 23)], &[("a", 23), ("d", 25)]] {
            assert_eq!(carried(&pair, &composite(other)), None, "{other:?}");
        }
    }

    #[test]
    fn arrays_are_taken_as_their_elements_are() {
        let mut types = types();
        for (array, element) in [(1007, 23), (1016, 20)] {
            let definition = types.get(&TypeId(element)).cloned().unwrap();
            types.insert(
                TypeId(array),
                TypeDefinition { id: TypeId(array), element: Some(TypeId(element)), ..definition },
            );
        }
        let of = |id| Carried::of(TypeId(id), -1, &types).unwrap();
        assert_eq!(carries(of(1007), of(1016)), Some(Transfer::Text));
        assert_eq!(carries(of(1016), of(1007)), None);
        assert_eq!(carries(of(1007), of(1007)), Some(Transfer::Binary));
        assert_eq!(carries(of(23), of(1007)), None);
    }

    #[test]
    fn arrays_domains_and_ranges_travel_as_what_they_hold() {
        let mut types = types();
        with(&mut types, 20_000, |d| d.kind = TypeKind::Enum);
        with(&mut types, 20_001, |d| (d.kind, d.has_binary) = (TypeKind::Base, false));
        for (number, inner, expected) in [(20_100, 20_000, Transfer::Binary), (20_200, 20_001, Transfer::Text)] {
            with(&mut types, number, |d| d.element = Some(TypeId(inner)));
            with(&mut types, number + 1, |d| (d.kind, d.base) = (TypeKind::Domain, Some(TypeId(number))));
            with(&mut types, number + 2, |d| (d.kind, d.subtype) = (TypeKind::Range, Some(TypeId(inner))));
            for id in number..number + 3 {
                let of = Carried::of(TypeId(id), -1, &types).unwrap();
                assert_eq!(carries(of, of), Some(expected), "{id}");
            }
        }
    }

    #[test]
    fn forms_that_differ_between_majors_are_not_sent_in_them() {
        let (older, mut newer) = (types(), types());
        newer.get_mut(&TypeId(1114)).unwrap().binary_form = 1;
        let of = |types| Carried::of(TypeId(1114), -1, types).unwrap();
        assert_eq!(carries(of(&newer), of(&older)), Some(Transfer::Text));
        assert_eq!(carries(of(&newer), of(&newer)), Some(Transfer::Binary));
    }

    #[test]
    fn types_of_extensions_are_binary_where_their_versions_are_the_same() {
        let of = |version: &str, has_binary| {
            let mut types = types();
            with(&mut types, 20_000, |d| {
                (d.has_binary, d.extension) = (has_binary, Some("tdigest".into()));
                d.extension_version = Some(version.into());
            });
            types
        };
        assert_eq!(carried(&of("1.4", true), &of("1.4", true)), Some(Transfer::Binary));
        assert_eq!(carried(&of("1.4", true), &of("1.2", true)), Some(Transfer::Text));
        assert_eq!(carried(&of("1.4", false), &of("1.4", false)), Some(Transfer::Text));
    }

    #[test]
    fn scales_have_signs() {
        for (modifier, sql, late) in [
            (((10 << 16) | 2) + 4, "numeric(10,2)", false),
            (((5 << 16) | (-2 & 0x7FF)) + 4, "numeric(5,-2)", true),
            (((3 << 16) | 5) + 4, "numeric(3,5)", true),
        ] {
            assert_eq!(type_sql(TypeId(NUMERIC), modifier, &types()).as_deref(), Some(sql));
            let at_14 = modifier_at(TypeId(NUMERIC), modifier, &types(), 140_010);
            assert_eq!(at_14, if late { -1 } else { modifier });
            assert_eq!(modifier_at(TypeId(NUMERIC), modifier, &types(), 150_000), modifier);
        }
    }
}
