//! Which modules a file uses: every path in its code, made whole.
//!
//! A path is made whole by what it begins with: `crate`, `self`, `super`, a name that a `use` has brought, a module that is
//! declared where it stands, or else a crate. Of macros all paths are read that stand in their tokens, whatever the macro
//! makes of them. Methods are not seen: who calls one has its type from somewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::{
    Attribute, Expr, Field, ImplItem, Item, ItemExternCrate, ItemMod, ItemUse, Macro, Meta, Stmt, TraitItem, UseTree,
    Variant,
    spanned::Spanned,
    visit::{self, Visit},
};

/// A module's path from the root of the crate, such as `tunnel::driver`, or one that begins with another crate's name.
pub(super) type Names = Vec<String>;

/// Something that is named.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    /// The module that names it.
    pub(super) by: Names,
    pub(super) of: Of,
    /// Only tests do.
    pub(super) in_tests: bool,
    pub(super) file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Of {
    /// What is in this crate.
    Own(Names),
    /// What is in another, whose name comes first.
    Other(Names),
}

/// Types that look like crates in a path, as in `u32::MAX`.
const PRIMITIVE: [&str; 17] = [
    "bool", "char", "f32", "f64", "i128", "i16", "i32", "i64", "i8", "isize", "str", "u128", "u16", "u32", "u64", "u8",
    "usize",
];

/// All uses of the sources below a folder, which has a `lib.rs` or is one in the tests.
pub(super) fn uses_below(src: &Path, files: &[PathBuf], crate_name: &str) -> Vec<Use> {
    let parsed: Vec<_> = files
        .iter()
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let relative = path.strip_prefix(src).unwrap().to_path_buf();
            (module_of(&relative), relative, file)
        })
        .collect();
    let mut scopes = Scopes { crate_name: crate_name.to_owned(), ..Scopes::default() };
    for (module, _, file) in &parsed {
        scopes.declare(module, &file.items, false);
    }
    let mut uses = BTreeSet::new();
    for (module, relative, file) in &parsed {
        let in_tests = scopes.tests.iter().any(|tests| module.starts_with(tests));
        let mut reader = Reader { scopes: &scopes, module: module.clone(), in_tests, file: relative, found: &mut uses };
        reader.visit_file(file);
    }
    uses.into_iter().collect()
}

fn module_of(relative: &Path) -> Names {
    let whole = relative.with_extension("");
    let names = whole.components().map(|part| part.as_os_str().to_str().unwrap().to_owned());
    // What is in `lib.rs` is in the crate's root; `main.rs` is a crate of its own.
    names.filter(|name| name != "lib").collect()
}

/// The code of a file without comments, and without what is there for tests only, wherever that stands.
pub(super) fn without_tests(text: &str) -> String {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{error}:\n{text}"));
    let mut tests = TestLines::default();
    tests.visit_file(&file);
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    let kept = numbered.filter(|(number, line)| {
        !line.trim_start().starts_with("//") && !tests.0.iter().any(|lines| lines.contains(number))
    });
    kept.map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}

/// The lines of what is there for tests only.
#[derive(Default)]
struct TestLines(Vec<RangeInclusive<usize>>);

impl TestLines {
    fn note(&mut self, attributes: &[Attribute], node: &impl Spanned) {
        if attributes.iter().any(is_for_tests) {
            self.0.push(node.span().start().line..=node.span().end().line);
        }
    }
}

impl<'ast> Visit<'ast> for TestLines {
    fn visit_item(&mut self, item: &'ast Item) {
        self.note(attributes_of_item(item), item);
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        self.note(attributes_of_impl_item(item), item);
        visit::visit_impl_item(self, item);
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        self.note(attributes_of_statement(statement), statement);
        visit::visit_stmt(self, statement);
    }

    fn visit_field(&mut self, field: &'ast Field) {
        self.note(&field.attrs, field);
    }

    fn visit_variant(&mut self, variant: &'ast Variant) {
        self.note(&variant.attrs, variant);
    }
}

/// What names mean where they stand.
#[derive(Debug, Default)]
struct Scopes {
    crate_name: String,
    /// Of each module: names that `use` brings, and what they stand for, as it is written.
    brought: BTreeMap<Names, BTreeMap<String, Names>>,
    /// Of each module: what it brings all of.
    globs: BTreeMap<Names, Vec<Names>>,
    modules: BTreeSet<Names>,
    /// Modules that only tests have.
    tests: Vec<Names>,
}

impl Scopes {
    fn declare(&mut self, module: &Names, items: &[Item], in_tests: bool) {
        self.modules.insert(module.clone());
        for item in items {
            let in_tests = in_tests || attributes_of_item(item).iter().any(is_for_tests);
            if let Item::Mod(inner) = item {
                let path = joined(module, &inner.ident.to_string());
                self.modules.insert(path.clone());
                if in_tests {
                    self.tests.push(path.clone());
                }
                if let Some((_, items)) = &inner.content {
                    self.declare(&path, items, in_tests);
                }
            } else if let Item::Use(item) = item {
                for (path, name) in leaves(&item.tree) {
                    match name {
                        Some(name) => drop(self.brought.entry(module.clone()).or_default().insert(name, path)),
                        None => self.globs.entry(module.clone()).or_default().push(path),
                    }
                }
            }
        }
    }

    /// Makes a path whole. `None` for what is neither of this crate nor of another, such as a type's own constant.
    fn resolve(&self, module: &[String], path: &[String]) -> Option<Of> {
        self.resolve_within(module, path, 0)
    }

    fn resolve_within(&self, module: &[String], path: &[String], depth: usize) -> Option<Of> {
        // Names that bring each other are the compiler's business.
        if depth > 8 {
            return None;
        }
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" | "$crate" => return Some(Of::Own(rest.to_vec())),
            "self" if rest.first().is_some_and(|next| next == "super") => {
                return self.resolve_within(module, rest, depth);
            }
            "self" => return Some(Of::Own([module, rest].concat())),
            "super" => {
                let mut module = module;
                let mut rest = path;
                while let Some(("super", after)) = rest.split_first().map(|(first, after)| (first.as_str(), after)) {
                    module = module.split_last().map_or(&[][..], |(_, parent)| parent);
                    rest = after;
                }
                return Some(Of::Own([module, rest].concat()));
            }
            name if name == self.crate_name => return Some(Of::Own(rest.to_vec())),
            _ => {}
        }
        if let Some(brought) = self.brought.get(module).and_then(|names| names.get(first))
            && brought.as_slice() != path
            && brought.first() != Some(first)
        {
            return self.resolve_within(module, &[brought, rest].concat(), depth + 1);
        }
        let child = [module, std::slice::from_ref(first)].concat();
        if self.modules.contains(&child) {
            return Some(Of::Own([&child, rest].concat()));
        }
        for glob in self.globs.get(module).into_iter().flatten() {
            let Some(Of::Own(from)) = self.resolve_within(module, glob, depth + 1) else { continue };
            let knows = self.brought.get(&from).is_some_and(|names| names.contains_key(first))
                || self.modules.contains(&[from.as_slice(), std::slice::from_ref(first)].concat());
            if knows {
                return self.resolve_within(&from, path, depth + 1);
            }
        }
        let is_crate = first.chars().next().is_some_and(char::is_lowercase) && !PRIMITIVE.contains(&first.as_str());
        is_crate.then(|| Of::Other(path.to_vec()))
    }
}

fn joined(module: &[String], name: &str) -> Names {
    [module, &[name.to_owned()]].concat()
}

/// What a tree of `use` names, each with the name that it gets; none for all of a module.
fn leaves(tree: &UseTree) -> Vec<(Names, Option<String>)> {
    fn add(prefix: &[String], tree: &UseTree, found: &mut Vec<(Names, Option<String>)>) {
        match tree {
            UseTree::Path(path) => add(&joined(prefix, &path.ident.to_string()), &path.tree, found),
            UseTree::Group(group) => group.items.iter().for_each(|tree| add(prefix, tree, found)),
            UseTree::Glob(_) => found.push((prefix.to_vec(), None)),
            UseTree::Name(name) if name.ident == "self" => found.push((prefix.to_vec(), prefix.last().cloned())),
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                found.push((joined(prefix, &name), Some(name)));
            }
            UseTree::Rename(rename) => {
                let path = match rename.ident.to_string().as_str() {
                    "self" if !prefix.is_empty() => prefix.to_vec(),
                    name => joined(prefix, name),
                };
                found.push((path, Some(rename.rename.to_string())));
            }
        }
    }
    let mut found = Vec::new();
    add(&[], tree, &mut found);
    found
}

/// Tells whether something is there for tests only: `#[cfg(test)]`, also with others, or a test itself.
fn is_for_tests(attribute: &Attribute) -> bool {
    if let Meta::List(list) = &attribute.meta
        && list.path.is_ident("cfg")
    {
        let condition = list.tokens.to_string();
        let mut words = condition.split(|c: char| !c.is_alphanumeric() && c != '_');
        return words.any(|word| word == "test") && !condition.replace(' ', "").contains("not(test");
    }
    attribute.path().segments.last().is_some_and(|last| last.ident == "test")
}

macro_rules! attributes {
    ($node:expr, $($kind:path),*) => {
        match $node {
            $($kind(inner) => &inner.attrs,)*
            _ => &[],
        }
    };
}

fn attributes_of_item(item: &Item) -> &[Attribute] {
    attributes!(
        item,
        Item::Const,
        Item::Enum,
        Item::ExternCrate,
        Item::Fn,
        Item::ForeignMod,
        Item::Impl,
        Item::Macro,
        Item::Mod,
        Item::Static,
        Item::Struct,
        Item::Trait,
        Item::TraitAlias,
        Item::Type,
        Item::Union,
        Item::Use
    )
}

fn attributes_of_impl_item(item: &ImplItem) -> &[Attribute] {
    attributes!(item, ImplItem::Const, ImplItem::Fn, ImplItem::Macro, ImplItem::Type)
}

/// An expression has them on itself, and then they are those of the statement.
fn attributes_of_statement(statement: &Stmt) -> &[Attribute] {
    match statement {
        Stmt::Expr(Expr::Block(block), _) => &block.attrs,
        Stmt::Expr(Expr::Call(call), _) => &call.attrs,
        Stmt::Expr(Expr::MethodCall(call), _) => &call.attrs,
        Stmt::Local(local) => &local.attrs,
        Stmt::Macro(item) => &item.attrs,
        Stmt::Item(_) | Stmt::Expr(..) => &[],
    }
}

/// Reads one file.
struct Reader<'a> {
    scopes: &'a Scopes,
    module: Names,
    in_tests: bool,
    file: &'a Path,
    found: &'a mut BTreeSet<Use>,
}

impl Reader<'_> {
    fn names(&mut self, path: &[String]) {
        if let Some(of) = self.scopes.resolve(&self.module, path) {
            let file = self.file.to_path_buf();
            self.found.insert(Use { by: self.module.clone(), of, in_tests: self.in_tests, file });
        }
    }

    fn within(&mut self, attributes: &[Attribute], visit: impl FnOnce(&mut Self)) {
        let before = self.in_tests;
        self.in_tests |= attributes.iter().any(is_for_tests);
        visit(self);
        self.in_tests = before;
    }

    /// Reads every path among tokens, groups in braces included as a `use` has them.
    fn tokens(&mut self, tokens: TokenStream) {
        let trees: Vec<_> = tokens.into_iter().collect();
        let mut at = 0;
        while at < trees.len() {
            match &trees[at] {
                TokenTree::Ident(first) => {
                    let dollar = at > 0 && is_punct(&trees[at - 1], '$') && first == "crate";
                    // What follows a dot is a field or a method.
                    let is_member = at > 0 && is_punct(&trees[at - 1], '.');
                    let first = if dollar { "$crate".to_owned() } else { plain(first) };
                    at = if is_member { at + 1 } else { self.path_in(&trees, at + 1, vec![first]) };
                }
                TokenTree::Group(group) => {
                    self.tokens(group.stream());
                    at += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
            }
        }
    }

    /// Reads on from where a path has come to, and returns where it ends.
    fn path_in(&mut self, trees: &[TokenTree], mut at: usize, mut path: Names) -> usize {
        while at + 2 < trees.len() && is_punct(&trees[at], ':') && is_punct(&trees[at + 1], ':') {
            match &trees[at + 2] {
                TokenTree::Ident(name) => path.push(plain(name)),
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let inner: Vec<_> = group.stream().into_iter().collect();
                    for branch in inner.split(|tree| is_punct(tree, ',')) {
                        if let Some(TokenTree::Ident(name)) = branch.first() {
                            let path = if name == "self" { path.clone() } else { joined(&path, &plain(name)) };
                            self.path_in(branch, 1, path);
                        } else if !branch.is_empty() {
                            self.names(&path);
                        }
                    }
                    return at + 3;
                }
                TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => break,
            }
            at += 3;
        }
        if path.len() > 1 {
            self.names(&path);
        }
        at
    }
}

fn is_punct(tree: &TokenTree, wanted: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn plain(ident: &Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        self.within(attributes_of_item(item), |reader| visit::visit_item(reader, item));
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        self.within(attributes_of_impl_item(item), |reader| visit::visit_impl_item(reader, item));
    }

    fn visit_trait_item(&mut self, item: &'ast TraitItem) {
        let attributes: &[Attribute] =
            attributes!(item, TraitItem::Const, TraitItem::Fn, TraitItem::Macro, TraitItem::Type);
        self.within(attributes, |reader| visit::visit_trait_item(reader, item));
    }

    fn visit_field(&mut self, field: &'ast Field) {
        self.within(&field.attrs, |reader| visit::visit_field(reader, field));
    }

    fn visit_variant(&mut self, variant: &'ast Variant) {
        self.within(&variant.attrs, |reader| visit::visit_variant(reader, variant));
    }

    fn visit_stmt(&mut self, statement: &'ast Stmt) {
        self.within(attributes_of_statement(statement), |reader| visit::visit_stmt(reader, statement));
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        for (path, _) in leaves(&item.tree) {
            self.names(&path);
        }
        visit::visit_item_use(self, item);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast ItemExternCrate) {
        self.names(&[item.ident.to_string()]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Names = path.segments.iter().map(|segment| plain(&segment.ident)).collect();
        if names.len() > 1 {
            self.names(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        visit::visit_macro(self, item);
        self.tokens(item.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        // Documentation names what it likes.
        if attribute.path().is_ident("doc") {
            return;
        }
        visit::visit_attribute(self, attribute);
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone());
            // As in `#[serde(with = "crate::module")]`.
            for tree in list.tokens.clone() {
                if let TokenTree::Literal(literal) = tree
                    && let Ok(text) = syn::parse_str::<syn::LitStr>(&literal.to_string())
                    && let Ok(path) = text.parse::<syn::Path>()
                {
                    self.visit_path(&path);
                }
            }
        }
    }
}
