//! The status page: one HTML file with its style and script in it, embedded in the binary.
//!
//! Served by `http` at `/`; brought up to date by /events. It loads nothing from anywhere else, so it works offline.
//! Its Content-Security-Policy names the style and the script by their hashes: nothing else runs, whatever text the
//! page shows. The script puts text into the page as text, never as HTML.

use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

const HTML: &str = include_str!("index.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
/// The mark, as the tab shows it.
const ICON: &str = include_str!("icon.svg");

/// The page as it is served.
pub(super) struct Page {
    pub(super) html: String,
    pub(super) policy: HeaderValue,
}

impl Page {
    pub(super) fn new() -> Page {
        let icon = STANDARD.encode(ICON);
        let html = HTML.replace("{{style}}", STYLE).replace("{{icon}}", &icon).replace("{{script}}", SCRIPT);
        let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; form-action \
             'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        // The hashes are base64, so the policy is a header's value; without one the page would not be protected.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Page { html, policy }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_asks_nobody_else_for_anything() {
        let page = Page::new();
        assert!(!page.html.contains("{{"), "a part is missing");
        for place in ["http://", "https://", "//cdn", "@import", "url("] {
            let shown = page.html.replace("http://www.w3.org/", "");
            assert!(!shown.contains(place), "{place} in the page");
        }
        // The only sources are data: and our own paths.
        assert!(!page.html.contains("innerHTML"), "text is put in as text");
    }

    #[test]
    fn the_policy_names_exactly_the_style_and_the_script_that_are_in_the_page() {
        let page = Page::new();
        let policy = page.policy.to_str().unwrap();
        for (begin, end) in [("<style>", "</style>"), ("<script>", "</script>")] {
            let (_, rest) = page.html.split_once(begin).unwrap();
            let (text, rest) = rest.split_once(end).unwrap();
            assert!(!rest.contains(begin), "one {begin} only");
            let hash = STANDARD.encode(Sha256::digest(text));
            assert!(policy.contains(&hash), "{begin} is not what the policy allows");
        }
        assert!(!policy.contains("unsafe"));
        assert!(
            !page.html.contains(" style=\"") && !page.html.contains(" onclick="),
            "inline attributes are not allowed"
        );
    }
}
