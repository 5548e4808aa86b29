//! From a syntax tree to mutants, and from mutants to text: which places of a file can be changed, and how.
//!
//! A mutant is text around a place, or text instead of it where an operand has to stand twice. One text can hold many mutants of
//! a file, as long as none lies inside one that replaces its place.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// One change of one place. `number` is given when mutants are drawn; 0 means none.
#[derive(Clone, Debug)]
pub struct Mutant {
    pub number: u32,
    pub file: PathBuf,
    pub line: usize,
    /// File, change and the changed text, with a number where a file has the same more than once. Holds no line number.
    pub name: String,
    place: Range<usize>,
    edit: Edit,
}

#[derive(Clone, Debug)]
enum Edit {
    /// `before` and `after` the place; `#` stands for the question whether the mutant is alive.
    Around(&'static str, &'static str),
    /// Right behind the place's first character, the brace of a body.
    Enter(&'static str),
    /// The left operand, an operator and the right one instead of the place.
    Operator { left: Range<usize>, instead: &'static str, right: Range<usize> },
}

/// Every mutant of the files at `places`, in the order of the files' names.
pub fn collect(root: &Path, places: &[&str]) -> Result<Vec<Mutant>, String> {
    let mut files = Vec::new();
    for place in places {
        files_below(&root.join(place), &mut files).map_err(|error| format!("{place}: {error}"))?;
    }
    files.sort();
    let mut mutants = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let parsed = syn::parse_file(&text).map_err(|error| format!("{}: {error}", file.display()))?;
        let file = file.strip_prefix(root).map_err(|error| error.to_string())?.to_owned();
        let mut finder = Finder { file, text: &text, mutants: Vec::new() };
        finder.visit_file(&parsed);
        name_apart(&mut finder.mutants);
        mutants.append(&mut finder.mutants);
    }
    Ok(mutants)
}

fn files_below(place: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !place.is_dir() {
        files.push(place.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(place)? {
        let path = entry?.path();
        let is_test =
            path.file_stem().is_some_and(|stem| ["tests", "testing", "model"].iter().any(|test| stem == *test));
        if path.is_dir() || (path.extension().is_some_and(|extension| extension == "rs") && !is_test) {
            files_below(&path, files)?;
        }
    }
    Ok(())
}

/// Numbers the second and later mutants of one name.
fn name_apart(mutants: &mut [Mutant]) {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for mutant in mutants {
        let times = seen.entry(mutant.name.clone()).or_default();
        *times += 1;
        if *times > 1 {
            mutant.name = format!("{} ({times})", mutant.name);
        }
    }
}

/// The wanted mutants, and `count` others by chance, numbered from 1, none inside one that replaces its place. Chance is a hash of
/// seed and name, so that a change of one file does not change what is drawn of the others.
pub fn draw(all: &[Mutant], wanted: impl Fn(&Mutant) -> bool, count: usize, seed: u32) -> Vec<Mutant> {
    let mut order: Vec<&Mutant> = all.iter().collect();
    order.sort_by_key(|mutant| (!wanted(mutant), hash(seed, &mutant.name)));
    let (mut drawn, mut by_chance): (Vec<Mutant>, usize) = (Vec::new(), 0);
    for mutant in order {
        let is_wanted = wanted(mutant);
        if (is_wanted || by_chance < count) && drawn.iter().all(|other| can_stand_together(mutant, other)) {
            by_chance += usize::from(!is_wanted);
            drawn.push(mutant.clone());
        }
    }
    drawn.sort_by(|a, b| (&a.file, a.place.start).cmp(&(&b.file, b.place.start)));
    for (number, mutant) in (1..).zip(&mut drawn) {
        mutant.number = number;
    }
    drawn
}

/// A number by chance for a name: FNV-1a, and then mixed, since names differ little, and at their ends.
pub fn hash(seed: u32, name: &str) -> u64 {
    let bytes = seed.to_le_bytes().into_iter().chain(name.bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

fn can_stand_together(a: &Mutant, b: &Mutant) -> bool {
    let replaces = |mutant: &Mutant| matches!(mutant.edit, Edit::Operator { .. });
    let apart = a.place.end <= b.place.start || b.place.end <= a.place.start;
    let a_holds = a.place.start <= b.place.start && b.place.end <= a.place.end;
    let b_holds = b.place.start <= a.place.start && a.place.end <= b.place.end;
    a.file != b.file || apart || (a_holds && !replaces(a)) || (b_holds && !replaces(b))
}

/// The file's text with all of these mutants, which lie in it.
pub fn apply(text: &str, mutants: &[&Mutant]) -> String {
    // What is put in, by place. Behind what ends there: inner before outer; then what begins there: outer before inner.
    let mut inserts: BTreeMap<(usize, u8, usize), String> = BTreeMap::new();
    let mut replaced: BTreeMap<usize, (usize, String)> = BTreeMap::new();
    for mutant in mutants {
        let alive = format!("crate::mutation::is({})", mutant.number);
        let Range { start, end } = mutant.place.clone();
        let length = end - start;
        match &mutant.edit {
            Edit::Around(before, after) => {
                inserts.entry((end, 0, length)).or_default().push_str(&after.replace('#', &alive));
                inserts.entry((start, 1, usize::MAX - length)).or_default().insert_str(0, &before.replace('#', &alive));
            }
            Edit::Enter(entered) => {
                inserts.entry((start + 1, 1, 0)).or_default().push_str(&entered.replace('#', &alive));
            }
            Edit::Operator { left, instead, right } => {
                let (left, right) = (&text[left.clone()], &text[right.clone()]);
                let original = &text[start..end];
                replaced.insert(
                    start,
                    (end, format!("(if {alive} {{ ({left}) {instead} ({right}) }} else {{ {original} }})")),
                );
            }
        }
    }
    let mut out = String::new();
    let mut at = 0;
    let mut inserts = inserts.into_iter().peekable();
    loop {
        let next_insert = inserts.peek().map(|((place, ..), _)| *place);
        let next_replaced = replaced.keys().next().copied();
        match (next_insert, next_replaced) {
            (Some(place), replacement) if replacement.is_none_or(|start| place <= start) => {
                out.push_str(&text[at..place]);
                at = place;
                out.push_str(&inserts.next().expect("it was seen").1);
            }
            (_, Some(start)) => {
                let (end, instead) = replaced.remove(&start).expect("it was seen");
                out.push_str(&text[at..start]);
                out.push_str(&instead);
                at = end;
            }
            (_, None) => break,
        }
    }
    out + &text[at..]
}

struct Finder<'a> {
    file: PathBuf,
    text: &'a str,
    mutants: Vec<Mutant>,
}

impl Finder<'_> {
    fn add(&mut self, span: Span, place: Range<usize>, what: &str, edit: Edit) {
        let text = match &edit {
            // A body is named by its function, which `what` says.
            Edit::Enter(_) => String::new(),
            Edit::Around(..) | Edit::Operator { .. } => {
                let words = self.text[place.clone()].split_whitespace().collect::<Vec<_>>().join(" ");
                format!(": {}", words.chars().take(120).collect::<String>())
            }
        };
        let name = format!("{}: {what}{text}", self.file.display());
        self.mutants.push(Mutant { number: 0, file: self.file.clone(), line: span.start().line, name, place, edit });
    }

    /// A condition is forced either way.
    fn condition(&mut self, condition: &syn::Expr, of: &str) {
        if holds_let(condition) {
            return;
        }
        let (span, place) = (condition.span(), condition.span().byte_range());
        self.add(span, place.clone(), &format!("{of} is never taken"), Edit::Around("(!# && (", "))"));
        self.add(span, place, &format!("{of} is always taken"), Edit::Around("(# || (", "))"));
    }

    fn body(&mut self, signature: &syn::Signature, block: &syn::Block) {
        if signature.constness.is_some() {
            return;
        }
        let place = block.span().byte_range();
        let span = signature.ident.span();
        let type_ = match &signature.output {
            syn::ReturnType::Default => String::new(),
            syn::ReturnType::Type(_, type_) => first_words(type_),
        };
        let edits: &[&'static str] = match type_.as_str() {
            "" => &[" if # { return; }"],
            "bool" => &[" if # { return true; }", " if # { return false; }"],
            "Option" => &[" if # { return None; }"],
            "Result ()" => &[" if # { return Ok(()); }"],
            "Vec" => &[" if # { return Vec::new(); }"],
            _ => &[],
        };
        for edit in edits {
            let jump = edit.trim_start_matches(" if # { ").trim_end_matches("; }");
            self.add(span, place.clone(), &format!("fn {} begins with {jump}", signature.ident), Edit::Enter(edit));
        }
    }
}

/// `Vec`, `Option`, `bool`, `Result ()`: as much of a type as says what can be returned instead.
fn first_words(type_: &syn::Type) -> String {
    let syn::Type::Path(path) = type_ else { return "other".to_owned() };
    let Some(last) = path.path.segments.last() else { return "other".to_owned() };
    let mut words = last.ident.to_string();
    if words == "Result"
        && let syn::PathArguments::AngleBracketed(arguments) = &last.arguments
        && let Some(syn::GenericArgument::Type(syn::Type::Tuple(tuple))) = arguments.args.first()
        && tuple.elems.is_empty()
    {
        words.push_str(" ()");
    }
    words
}

fn holds_let(expression: &syn::Expr) -> bool {
    match expression {
        syn::Expr::Let(_) => true,
        syn::Expr::Binary(binary) => holds_let(&binary.left) || holds_let(&binary.right),
        syn::Expr::Paren(inner) => holds_let(&inner.expr),
        _ => false,
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let cfg =
            attribute.path().is_ident("cfg") && attribute.parse_args::<syn::Path>().is_ok_and(|of| of.is_ident("test"));
        cfg || attribute.path().is_ident("test")
    })
}

fn other_operator(operator: &syn::BinOp) -> Option<&'static str> {
    Some(match operator {
        syn::BinOp::Lt(_) => "<=",
        syn::BinOp::Le(_) => "<",
        syn::BinOp::Gt(_) => ">=",
        syn::BinOp::Ge(_) => ">",
        syn::BinOp::And(_) => "||",
        syn::BinOp::Or(_) => "&&",
        syn::BinOp::Add(_) => "-",
        syn::BinOp::Sub(_) => "+",
        syn::BinOp::Eq(_) => "!=",
        syn::BinOp::Ne(_) => "==",
        _ => return None,
    })
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_const(&mut self, _: &'ast syn::ItemConst) {}

    fn visit_item_static(&mut self, _: &'ast syn::ItemStatic) {}

    fn visit_impl_item_const(&mut self, _: &'ast syn::ImplItemConst) {}

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let shown =
            item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last()).map(|last| last.ident.to_string());
        if !is_test(&item.attrs) && !shown.is_some_and(|name| name == "Display" || name == "Debug") {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_test(&item.attrs) && item.sig.constness.is_none() {
            self.body(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) && item.sig.constness.is_none() {
            self.body(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_expr_binary(&mut self, binary: &'ast syn::ExprBinary) {
        if let Some(instead) = other_operator(&binary.op)
            && !holds_let(&binary.left)
            && !holds_let(&binary.right)
        {
            let span = binary.span();
            let edit = Edit::Operator {
                left: binary.left.span().byte_range(),
                instead,
                right: binary.right.span().byte_range(),
            };
            self.add(binary.op.span(), span.byte_range(), &format!("the operator is {instead}"), edit);
        }
        visit::visit_expr_binary(self, binary);
    }

    fn visit_expr_if(&mut self, branch: &'ast syn::ExprIf) {
        self.condition(&branch.cond, "the branch");
        visit::visit_expr_if(self, branch);
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if let Some((_, guard)) = &arm.guard {
            self.condition(guard, "the arm");
        }
        visit::visit_arm(self, arm);
    }

    fn visit_stmt(&mut self, statement: &'ast syn::Stmt) {
        let place = statement.span().byte_range();
        if let syn::Stmt::Expr(expression, Some(_)) = statement
            && is_action(expression)
            && !NOT_OF_THE_ROWS.iter().any(|word| self.text[place.clone()].contains(word))
        {
            let what = "the statement is left out";
            self.add(statement.span(), place, what, Edit::Around("if !# { ", " }"));
        }
        visit::visit_stmt(self, statement);
    }
}

/// Statements that only report, only wait or only serve tests: no row depends on them.
const NOT_OF_THE_ROWS: &[&str] = &["telemetry.", "failpoint::", "tokio::time::sleep("];

/// Does a statement do something that can be left out, and is it no jump?
fn is_action(expression: &syn::Expr) -> bool {
    match expression {
        syn::Expr::MethodCall(_) | syn::Expr::Call(_) | syn::Expr::Assign(_) => true,
        syn::Expr::Binary(binary) => other_operator(&binary.op).is_none(),
        syn::Expr::Await(inner) => is_action(&inner.base),
        syn::Expr::Try(inner) => is_action(&inner.expr),
        _ => false,
    }
}
