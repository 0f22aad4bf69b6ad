//! Settings that a manager goes by from its start to its end, whatever a file says later.

use crate::settings::UpSettings;

/// Keeps them as they were. Returns the names of those that have changed, as flags have them.
pub(super) fn keep(old: &UpSettings, new: &mut UpSettings) -> Vec<&'static str> {
    let mut changed = Vec::new();
    macro_rules! keep {
        ($($name:literal: $($field:ident).+;)*) => {
            $(if new.$($field).+ != old.$($field).+ {
                changed.push($name);
                new.$($field).+.clone_from(&old.$($field).+);
            })*
        };
    }
    keep! {
        "--allow-other-users": allow_other_users;
        "--audit": audit;
        "--kubeconfig": common.kubeconfig;
        "--kubeconfig-mode": kubeconfig_mode;
        "--metrics": metrics;
        "--proxy": proxy;
        "--proxy-others": proxy_others;
    }
    changed
}

/// Says that they count later.
pub(super) fn told(changed: &[&str]) -> Option<String> {
    if changed.is_empty() {
        return None;
    }
    let names: Vec<_> = changed.iter().map(|name| format!("`{name}`")).collect();
    Some(format!("changes of {} count from the next start on: `autoheal-pa down`, then `up`", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::KubeconfigMode;

    #[test]
    fn what_counts_from_the_start_on_stays_and_is_told() {
        let old = UpSettings { audit: Some("/old".into()), ..UpSettings::default() };
        let mut new = UpSettings {
            audit: Some("/new".into()),
            kubeconfig_mode: KubeconfigMode::LocalTls,
            base_port: 1234,
            ..UpSettings::default()
        };
        let changed = keep(&old, &mut new);
        assert_eq!(new.audit, old.audit);
        assert_eq!((new.kubeconfig_mode, new.base_port), (old.kubeconfig_mode, 1234));
        assert_eq!(
            told(&changed).unwrap(),
            "changes of `--audit`, `--kubeconfig-mode` count from the next start on: `autoheal-pa down`, then `up`"
        );
        assert_eq!(told(&keep(&old, &mut new)), None);
    }
}
