//! The instances and managed nodes, which come and go with Auto Scaling.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use super::{
    config::{BastionConfig, Config, GROUP_TAG},
    script::Command,
    session::{Control, SessionState},
    world::{World, lock},
};

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InstanceState {
    Pending,
    Running,
    ShuttingDown,
    Terminated,
}

impl InstanceState {
    /// Code and name, as EC2 has them.
    pub(super) fn names(self) -> (u32, &'static str) {
        match self {
            Self::Pending => (0, "pending"),
            Self::Running => (16, "running"),
            Self::ShuttingDown => (32, "shutting-down"),
            Self::Terminated => (48, "terminated"),
        }
    }
}

/// An instance or a managed node.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) config: BastionConfig,
    pub(super) launched: Duration,
    pub(super) state: InstanceState,
    /// When its agent is connected for the first time.
    online_at: Option<Instant>,
    /// Makes its addresses its own.
    pub(super) number: usize,
}

/// All of them, in the order of their making.
pub(super) struct Fleet {
    instances: Mutex<Vec<Instance>>,
}

impl Fleet {
    pub(super) fn new(config: &Config, wall: Duration) -> Self {
        let instances = config.bastions.iter().enumerate().map(|(number, config)| Instance {
            config: config.clone(),
            launched: wall.saturating_sub(Duration::from_secs(86_400)),
            state: InstanceState::Running,
            online_at: None,
            number,
        });
        Self { instances: Mutex::new(instances.collect()) }
    }

    pub(super) fn all(&self) -> Vec<Instance> {
        lock(&self.instances).clone()
    }

    pub(super) fn find(&self, id: &str) -> Option<Instance> {
        lock(&self.instances).iter().find(|instance| instance.config.id == id).cloned()
    }

    pub(super) fn write_to_console(&self, id: &str, text: &str) {
        self.change(id, |instance| instance.config.console = Some(text.to_owned()));
    }

    pub(super) fn change_public_address(&self, id: &str, address: Option<&str>) {
        self.change(id, |instance| instance.config.public_address = address.map(str::to_owned));
    }

    /// Has an instance running, in place of one that has had its id.
    pub(super) fn launch(&self, config: BastionConfig, launched: Duration) {
        let mut instances = lock(&self.instances);
        instances.retain(|known| known.config.id != config.id);
        let number = instances.len();
        instances.push(Instance { config, launched, state: InstanceState::Running, online_at: None, number });
    }

    pub(super) fn terminate(&self, id: &str) {
        self.change(id, |instance| instance.state = InstanceState::Terminated);
    }

    fn change(&self, id: &str, change: impl FnOnce(&mut Instance)) {
        if let Some(instance) = lock(&self.instances).iter_mut().find(|instance| instance.config.id == id) {
            change(instance);
        }
    }
}

/// Whether an instance's agent is connected.
pub(super) fn is_online(world: &World, instance: &Instance) -> bool {
    instance.config.managed
        && instance.state == InstanceState::Running
        && instance.online_at.is_none_or(|at| at <= world.clock.instant())
        && !world.settings().offline_bastions.contains(&instance.config.id)
}

/// Lets Auto Scaling replace an instance: its agent is gone at once, and another instance's is connected after
/// [`Config::instance_start`]. Returns the id of that one; `None` if there is no such instance.
pub(super) fn replace(world: &Arc<World>, id: &str) -> Option<String> {
    let old = world.fleet.find(id).filter(|instance| instance.state == InstanceState::Running)?;
    let start = world.config.instance_start;
    let new = format!("i-0{}", &Uuid::new_v4().simple().to_string()[..16]);
    {
        let mut instances = lock(&world.fleet.instances);
        let number = instances.len();
        instances.push(Instance {
            config: BastionConfig { id: new.clone(), online: true, ..old.config },
            launched: world.clock.wall(),
            state: InstanceState::Pending,
            online_at: Some(world.clock.instant() + start),
            number,
        });
    }
    world.fleet.change(id, |instance| instance.state = InstanceState::ShuttingDown);
    for session in lock(&world.sessions).values() {
        if session.start.target == id && session.state() != SessionState::Ended {
            session.control(Control::Command(Command::KillAgent));
        }
    }
    let (owner, world, old, young) = (world.clone(), world.clone(), id.to_owned(), new.clone());
    owner.tasks.spawn(async move {
        for (id, state) in [(&young, InstanceState::Running), (&old, InstanceState::Terminated)] {
            tokio::select! {
                biased;
                () = world.stop.cancelled() => return,
                () = tokio::time::sleep(start / 2) => {}
            }
            world.fleet.change(id, |instance| instance.state = state);
            world.journal.touch();
        }
    });
    owner.journal.touch();
    Some(new)
}

/// Replaces the oldest instance of each Auto Scaling group.
pub(super) fn replace_oldest(world: &Arc<World>) {
    let mut groups = Vec::new();
    for instance in world.fleet.all() {
        let Some(group) = instance.config.tags.get(GROUP_TAG) else { continue };
        if instance.state == InstanceState::Running && !groups.contains(group) {
            groups.push(group.clone());
            replace(world, &instance.config.id);
        }
    }
}
