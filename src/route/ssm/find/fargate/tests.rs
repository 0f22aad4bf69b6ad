//! How tasks are told apart.

use std::sync::Arc;

use super::{failure::tests::stopped, task::*};
use crate::{
    aws::Caller,
    route::ssm::{Made, Owner},
};

fn owner(name: &str, place: &str) -> Owner {
    Owner {
        name: name.to_owned(),
        place: place.to_owned(),
        run: "1".to_owned(),
        host: "laptop".to_owned(),
        caller: Caller {
            account: "123456789012".to_owned(),
            arn: "arn:aws:iam::123456789012:user/ann".to_owned(),
            user_id: "AIDAEXAMPLE".to_owned(),
            source: "keys".to_owned(),
            expires: None,
        },
        journal: None,
        is_running: Arc::new(|_| false),
        made: Made::default(),
    }
}

#[test]
fn a_task_tells_whose_it_is() {
    let place = "0123456789abcdef";
    for name in ["default", "a.b", "a-b", "a_b", "a.b.c"] {
        let mut task = stopped("", "", None);
        let text = started_by(&owner(name, place));
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_/".contains(&byte)), "{text}");
        task.started_by = Some(text.as_str().into());
        assert_eq!(manager_of(&task, place).as_deref(), Some(name));
        assert_eq!(manager_of(&task, "fedcba9876543210"), None, "of another host");
    }
    let mut task = stopped("", "", None);
    assert_eq!(manager_of(&task, place), None);
    task.started_by = Some("ecs-svc/0123456789abcdef".into());
    assert_eq!(manager_of(&task, place), None);
}
