//! Licence expressions as manifests write them: SPDX, and the old `MIT/Apache-2.0`.

/// Whether an expression can be satisfied with allowed licences alone.
///
/// An exception (`Apache-2.0 WITH LLVM-exception`) is part of its licence's name. What can't be parsed is not allowed.
pub(crate) fn is_satisfied(expression: &str, allowed: &dyn Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, allowed };
    parser.either() == Some(true) && parser.words.is_empty()
}

/// Descends by precedence: OR binds loosest, then AND, then WITH.
struct Parser<'a> {
    words: &'a [&'a str],
    allowed: &'a dyn Fn(&str) -> bool,
}

impl<'a> Parser<'a> {
    fn either(&mut self) -> Option<bool> {
        let mut satisfied = self.both()?;
        while self.take("OR") {
            satisfied |= self.both()?;
        }
        Some(satisfied)
    }

    fn both(&mut self) -> Option<bool> {
        let mut satisfied = self.one()?;
        while self.take("AND") {
            satisfied &= self.one()?;
        }
        Some(satisfied)
    }

    fn one(&mut self) -> Option<bool> {
        if self.take("(") {
            let satisfied = self.either()?;
            return self.take(")").then_some(satisfied);
        }
        let licence = self.word()?;
        if self.take("WITH") {
            return Some((self.allowed)(&format!("{licence} WITH {}", self.word()?)));
        }
        Some((self.allowed)(licence))
    }

    fn word(&mut self) -> Option<&'a str> {
        let (first, rest) = self.words.split_first()?;
        self.words = rest;
        (!["OR", "AND", "WITH", "(", ")"].contains(first)).then_some(*first)
    }

    fn take(&mut self, word: &str) -> bool {
        let taken = self.words.first() == Some(&word);
        if taken {
            self.words = &self.words[1..];
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::is_satisfied;

    fn ok(expression: &str) -> bool {
        is_satisfied(expression, &|name| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&name))
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert!(ok("MIT") && ok("GPL-3.0 OR MIT") && ok("GPL-3.0/MIT"));
        assert!(!ok("GPL-3.0") && !ok("GPL-2.0 OR GPL-3.0"));
    }

    #[test]
    fn everything_joined_by_and_must_be_allowed() {
        assert!(ok("(MIT OR GPL-3.0) AND ISC"));
        assert!(!ok("MIT AND GPL-3.0") && !ok("MIT AND (GPL-3.0 OR GPL-2.0)"));
        assert!(ok("GPL-3.0 AND ISC OR MIT"), "AND binds tighter than OR");
    }

    #[test]
    fn an_exception_belongs_to_its_licence() {
        assert!(ok("Apache-2.0 WITH LLVM-exception") && !ok("Apache-2.0"));
    }

    #[test]
    fn what_can_not_be_parsed_is_refused() {
        for broken in ["", "MIT OR", "(MIT", "MIT)", "OR MIT", "MIT MIT", "MIT WITH"] {
            assert!(!ok(broken), "{broken:?}");
        }
    }
}
