//! DNS never answers with an instance whose check is critical on the server that answered.
//!
//! The server is looked at just before the question is sent and just after the answer came. An instance that was critical
//! both times, by checks that did not change in between, was critical when the answer was made.

use quorate_types::CheckStatus;
use std::collections::{BTreeMap, BTreeSet};

/// What one server knows of a service: per node with an instance, the worst status and the indexes of its checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub instances: BTreeMap<String, (CheckStatus, BTreeSet<u64>)>,
}

impl Look {
    fn critical_until<'a>(&'a self, after: &'a Self) -> impl Iterator<Item = &'a str> {
        let both = self.instances.iter().filter(|(node, (status, _))| {
            *status == CheckStatus::Critical && after.instances.get(*node) == self.instances.get(*node)
        });
        both.map(|(node, _)| node.as_str())
    }
}

/// `servers`: each server that may have answered, before and after. A server that stopped meanwhile is not in it.
pub fn check(answered: &BTreeSet<String>, servers: &BTreeMap<String, (Look, Look)>) -> Result<(), String> {
    let mut servers = servers.iter();
    let Some((first, (before, after))) = servers.next() else {
        return Ok(());
    };
    let mut critical: BTreeSet<&str> = before.critical_until(after).collect();
    let mut names = vec![first.as_str()];
    for (name, (before, after)) in servers {
        // A client agent's server is not known: only what all of them call critical cannot be right.
        let here: BTreeSet<&str> = before.critical_until(after).collect();
        critical.retain(|node| here.contains(node));
        names.push(name);
    }
    match answered.iter().find(|node| critical.contains(node.as_str())) {
        Some(node) => Err(format!(
            "DNS answered with the instance on {node}, critical on {}",
            names.join(" and ")
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(status: CheckStatus, index: u64) -> Look {
        Look {
            instances: BTreeMap::from([("c1".to_owned(), (status, BTreeSet::from([index])))]),
        }
    }
    fn judge(answered: &[&str], looks: &[(Look, Look)]) -> Result<(), String> {
        let answered = answered.iter().map(|&node| node.to_owned()).collect();
        let named = looks.iter().cloned().enumerate();
        check(&answered, &named.map(|(n, looks)| (format!("s{n}"), looks)).collect())
    }

    #[test]
    fn an_instance_that_was_critical_all_along_is_rejected() {
        let critical = (look(CheckStatus::Critical, 5), look(CheckStatus::Critical, 5));
        assert!(judge(&["c1"], std::slice::from_ref(&critical)).is_err());
        assert!(judge(&["c1"], &[critical.clone(), critical.clone()]).is_err());
        assert_eq!(judge(&["c2"], std::slice::from_ref(&critical)), Ok(()));
        assert_eq!(judge(&[], &[critical]), Ok(()));
    }

    #[test]
    fn an_answer_that_some_server_could_give_is_accepted() {
        let critical = (look(CheckStatus::Critical, 5), look(CheckStatus::Critical, 5));
        for fair in [
            (look(CheckStatus::Passing, 4), look(CheckStatus::Critical, 5)),
            (look(CheckStatus::Critical, 5), look(CheckStatus::Warning, 6)),
            // It passed in between.
            (look(CheckStatus::Critical, 5), look(CheckStatus::Critical, 7)),
        ] {
            assert_eq!(judge(&["c1"], std::slice::from_ref(&fair)), Ok(()));
            assert_eq!(judge(&["c1"], &[critical.clone(), fair]), Ok(()));
        }
        assert_eq!(judge(&["c1"], &[]), Ok(()));
    }
}
