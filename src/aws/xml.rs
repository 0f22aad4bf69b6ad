//! Answers of services with the query protocol, which are XML: a tree of elements that hold either text or more elements.
//!
//! Invariant: an answer that ends early, or is nested deeper than any of EC2's, is none.

use aws_smithy_xml::decode::{Document, ScopedDecoder, XmlDecodeError, try_data};

/// Deepest nesting; answers of EC2 have half of it.
const MAX_DEPTH: usize = 24;

/// An element with what is in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    name: String,
    text: String,
    children: Vec<Self>,
}

impl Element {
    /// Reads a document.
    ///
    /// # Errors
    /// When it is not XML, or not all of it is there.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, XmlDecodeError> {
        let text = std::str::from_utf8(bytes).map_err(XmlDecodeError::unhandled)?;
        let mut depth = 0;
        for token in Document::new(text) {
            depth = token?.1;
        }
        if depth > 0 {
            return Err(XmlDecodeError::custom("the document ends early"));
        }
        // The decoder cannot look ahead: which elements have others in them is found first.
        let mut depths = Vec::new();
        let mut document = Document::new(text);
        while let Some(element) = document.next_start_element() {
            depths.push(element.depth());
        }
        if depths.iter().any(|depth| *depth > MAX_DEPTH) {
            return Err(XmlDecodeError::custom("the document is nested too deeply"));
        }
        let mut document = Document::new(text);
        let mut root = document.root_element()?;
        Self::fill(&mut root, &mut depths.windows(2).map(|pair| pair[1] > pair[0]))
    }

    /// Reads what is in an element; `parents` says of each one, in the order of the document, whether it has others in it.
    fn fill(
        decoder: &mut ScopedDecoder<'_, '_>,
        parents: &mut impl Iterator<Item = bool>,
    ) -> Result<Self, XmlDecodeError> {
        let mut element = Self { name: decoder.start_el().local().to_owned(), ..Self::default() };
        if parents.next().unwrap_or(false) {
            while let Some(mut child) = decoder.next_tag() {
                element.children.push(Self::fill(&mut child, parents)?);
            }
        } else {
            element.text = try_data(decoder)?.into_owned();
        }
        Ok(element)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// Takes a child out.
    pub(super) fn take(&mut self, name: &str) -> Option<Self> {
        let at = self.children.iter().position(|child| child.name == name)?;
        Some(self.children.swap_remove(at))
    }

    /// Returns its text, if there is any.
    pub(super) fn own_text(&self) -> Option<&str> {
        Some(self.text.trim()).filter(|text| !text.is_empty())
    }

    /// Returns the text of a child, if there is any.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.child(name).map(|child| child.text.trim()).filter(|text| !text.is_empty())
    }

    /// Returns the items of a list, or of the lists that are in the items of another, and so on.
    pub(super) fn items(&self, path: &[&str]) -> Vec<&Self> {
        path.iter().fold(vec![self], |elements, list| {
            let lists = elements.into_iter().filter_map(|element| element.child(list));
            let items = lists.flat_map(|list| &list.children);
            // EC2 has the former, all other services the latter.
            items.filter(|child| matches!(child.name.as_str(), "item" | "member")).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_lists_within_lists_and_text() {
        let text = "<?xml version=\"1.0\"?>\n<R xmlns=\"x\">\n <id>1 &lt; &#50;</id><none/>\n <a><item><b><item><c> x </c></item>\n\
                    <item><c>y</c></item></b></item><item/><other/></a></R>\n";
        let root = Element::read(text.as_bytes()).unwrap();
        assert_eq!((root.name(), root.text("id"), root.text("none"), root.text("a")), ("R", Some("1 < 2"), None, None));
        let texts: Vec<_> = root.items(&["a", "b"]).iter().map(|item| item.text("c").unwrap()).collect();
        assert_eq!(texts, ["x", "y"]);
        assert_eq!((root.items(&["a"]).len(), root.items(&["c"]).len()), (2, 0));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
        for text in ["", "x", "{}", "<R><a>x", "<R><a>x</a>", "<R>&nope;</R>", "<R", "</R>", "<R></R></R>", &deep] {
            assert!(Element::read(text.as_bytes()).is_err(), "{}", &text[..text.len().min(20)]);
        }
        assert!(Element::read(b"<R>\xff</R>").is_err());
    }

    proptest! {
        #[test]
        fn takes_anything(parts in prop::collection::vec(
            prop::sample::select(vec!["<a>", "</a>", "<b x='1'>", "</b>", "<c/>", "x", "&lt;", "&", "<!--", "-->", "<![CDATA[", "]]>", "<?p", "?>", " "]),
            0..40,
        )) {
            if let Ok(root) = Element::read(parts.concat().as_bytes()) {
                root.items(&["a", "b"]);
            }
        }
    }
}
