//! After a rotation every member has the new gossip key, seals with it, and has no other.

use serde_json::{Value, json};

/// `answer`: of `/v1/operator/keyring?local-only=true`, right after the old key was removed everywhere.
pub fn check(answer: &Value, key: &str, member_count: usize) -> Result<(), String> {
    let wanted = json!({ key: member_count });
    let pool = &answer[0];
    for field in ["Keys", "PrimaryKeys"] {
        if pool[field] != wanted {
            return Err(format!("{field} of the pool are {}, not {wanted}", pool[field]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(keys: &Value, primary: &Value) -> Value {
        json!([{"WAN": false, "Keys": keys, "PrimaryKeys": primary, "NumNodes": 3}])
    }

    #[test]
    fn a_key_that_is_not_everywhere_or_not_alone_is_rejected() {
        let new = json!({"new": 3});
        assert_eq!(check(&pool(&new, &new), "new", 3), Ok(()));
        for (keys, primary) in [
            (json!({"new": 2}), json!({"new": 2})),
            (json!({"new": 3, "old": 1}), json!({"new": 3})),
            (json!({"new": 3}), json!({"new": 2, "old": 1})),
            (json!({}), json!({})),
        ] {
            assert!(check(&pool(&keys, &primary), "new", 3).is_err(), "{keys} {primary}");
        }
        assert!(check(&json!([]), "new", 3).is_err());
    }
}
