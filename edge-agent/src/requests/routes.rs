//! Methods and routes as shared texts, a bounded number of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tapio_protocols::http1;

/// Routes of one control group; further ones are called `{other}`.
const ROUTES_PER_GROUP_MAX: usize = 128;
/// Routes of all groups.
const ROUTES_MAX: usize = 4_096;
/// Methods: those of RFC 9110 and a few more.
const METHODS_MAX: usize = 32;
/// The name of what no longer fits.
const OTHER: &str = "{other}";

/// The texts that are shared.
#[derive(Debug, Default)]
pub(super) struct Routes {
    by_group: HashMap<u64, HashSet<Arc<str>>>,
    total: usize,
    methods: HashSet<Arc<str>>,
}

impl Routes {
    /// The route of a target that a process of `group` sent or read.
    pub(super) fn route(&mut self, group: u64, target: &str) -> Arc<str> {
        let route = http1::route(target);
        let known = self.by_group.get(&group);
        if let Some(shared) = known.and_then(|routes| routes.get(route.as_str())) {
            return Arc::clone(shared);
        }
        if self.total >= ROUTES_MAX {
            // Groups come and go; starting over costs one allocation per route that is still in use.
            self.by_group.clear();
            self.total = 0;
        }
        let routes = self.by_group.entry(group).or_default();
        let name = if routes.len() >= ROUTES_PER_GROUP_MAX { OTHER } else { &route };
        if let Some(shared) = routes.get(name) {
            return Arc::clone(shared);
        }
        let shared: Arc<str> = Arc::from(name);
        routes.insert(Arc::clone(&shared));
        self.total += 1;
        shared
    }

    pub(super) fn method(&mut self, method: &str) -> Arc<str> {
        if let Some(shared) = self.methods.get(method) {
            return Arc::clone(shared);
        }
        let name = if self.methods.len() >= METHODS_MAX { OTHER } else { method };
        let shared: Arc<str> = Arc::from(name);
        self.methods.insert(Arc::clone(&shared));
        shared
    }

    pub(super) const fn len(&self) -> usize {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a service whose paths are free text, beside one with few routes.
    /// Guarantees: the first is cut off at its bound and does not cost the second its names.
    #[test]
    fn routes_are_bounded_per_group() {
        let mut routes = Routes::default();
        let word = |number: usize| {
            let letter = |digit: usize| char::from(b'a' + u8::try_from(digit % 26).unwrap());
            format!("/{}{}{}", letter(number), letter(number / 26), letter(number / 676))
        };
        for number in 0..1_000 {
            routes.route(1, &word(number));
        }
        assert_eq!(&*routes.route(1, "/a-new-word"), OTHER);
        assert_eq!(&*routes.route(1, &word(3)), word(3));
        assert_eq!(&*routes.route(2, "/orders/17"), "/orders/{id}");
        assert!(routes.len() <= ROUTES_PER_GROUP_MAX + 2);
        assert!(Arc::ptr_eq(&routes.method("GET"), &routes.method("GET")));
    }
}
