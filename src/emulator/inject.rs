//! Puts a [`Fault`] in force: as a setting, as a command that is given again and again, or as an outage that ends.

use std::{sync::Arc, time::Duration};

use super::{
    Emulator, Fault, Settings,
    faults::{Effect, Value},
    world::World,
};

impl Emulator {
    /// Puts a fault in force until the emulator stops.
    pub fn inject(&self, fault: &Fault) {
        match (fault.row.effect, &fault.value) {
            (Effect::Every(command), Value::Time(every)) => {
                let command = command(*every);
                self.repeat(*every, move |world| {
                    world.command(&command);
                });
            }
            (Effect::Acts(act), Value::Time(every)) => self.repeat(*every, act),
            _ => self.inject_once(fault),
        }
    }

    /// As [`inject`](Self::inject), and what it would do again and again happens once, and at once.
    pub fn inject_once(&self, fault: &Fault) {
        match (fault.row.effect, &fault.value) {
            (Effect::Every(command), Value::Time(every)) => drop(self.command(&command(*every))),
            (Effect::Acts(act), Value::Time(_)) => act(&self.world),
            (Effect::For { begin, with, end }, Value::Time(time)) => {
                let world = self.world.clone();
                self.update(|settings| begin(settings, &world.config));
                self.command(&with());
                self.after(*time, end);
            }
            (effect, value) => self.update(|settings| effect.apply(settings, value)),
        }
    }

    fn repeat(&self, every: Duration, act: impl Fn(&Arc<World>) + Send + 'static) {
        let world = self.world.clone();
        self.world.tasks.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    () = world.stop.cancelled() => return,
                    () = tokio::time::sleep(every) => {}
                }
                act(&world);
            }
        });
    }

    /// Changes the settings again later.
    fn after(&self, time: Duration, change: fn(&mut Settings)) {
        let world = self.world.clone();
        self.world.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = world.stop.cancelled() => return,
                () = tokio::time::sleep(time) => {}
            }
            world.update(change);
        });
    }
}
