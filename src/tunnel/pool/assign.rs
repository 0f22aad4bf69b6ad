//! Which link takes a connection, and which links there have to be for it.

use std::time::Duration;

use tracing::{debug, info};

use super::{Pool, RELIEF_PATIENCE, SHARE_IDLE, SHARE_PATIENCE};
use crate::{
    tunnel::{
        Sharing, State,
        member::{Member, Role},
        recovery,
    },
    util::time::Now,
};

impl Pool {
    /// Sees to it that there are the links that there have to be. To be called after reports; `is_waited_for`: a connection
    /// waits for one. Returns whether the tunnel rests from now on.
    pub(in crate::tunnel) fn review(&mut self, now: Now, is_waited_for: bool) -> bool {
        if self.stop.is_cancelled() {
            return false;
        }
        // What has just come up for the first time is kept as long as what has been used.
        let was_up = self.base().is_some_and(|(_, base)| base.slot.was_active());
        if is_waited_for || self.open_connections() > 0 || !self.was_up {
            self.used_at = now.mono;
        }
        self.was_up = was_up;
        let rests = self.rests_at().is_some_and(|at| at <= now.mono);
        if rests {
            self.rest(now);
        }
        self.adopt();
        let start_time = self.start_time;
        let (mut is_ready, mut is_level) = (false, false);
        for member in self.members.values_mut() {
            member.observe(now.mono);
            member.slot.judge_backlog(start_time);
            if member.role == Role::Base {
                is_ready = member.slot.takes_connections(now.mono);
                is_level = is_ready && !member.slot.is_behind();
            }
        }
        for member in self.members.values_mut() {
            match member.role {
                Role::Relief if is_level => {
                    info!("the base link has caught up: the relief takes no more connections");
                    member.retire();
                }
                Role::Extra | Role::Relief if member.slot.is_leaving() => {
                    debug!("what a link leads through is about to go: it takes no more connections");
                    member.retire();
                }
                Role::Candidate if member.slot.is_leaving() => member.stop.cancel(),
                Role::Extra if member.open() == 0 && member.slot.is_lost() => {
                    debug!("an extra link is lost, and has no connections: closing it");
                    member.retire();
                }
                Role::Extra if is_ready && now.mono >= member.used_at + SHARE_IDLE => {
                    info!("an extra link has had no connections for a while: closing it");
                    self.share_failures = 0;
                    member.retire();
                }
                Role::Base | Role::Extra | Role::Relief | Role::Candidate | Role::Retiring => {}
            }
            if member.role == Role::Retiring && member.open() == 0 {
                member.stop.cancel();
            }
        }
        // One that was dormant has no task whose end would be seen.
        let gone: Vec<_> =
            self.members.iter().filter(|(_, member)| member.is_gone()).map(|(&place, _)| place).collect();
        for place in gone {
            self.remove_gone(place, now);
        }
        self.share_load(now);
        self.look_for_better_route(now);
        rests
    }

    /// Starts an extra link while all links are busy, and keeps those that there are.
    fn share_load(&mut self, now: Now) {
        let config = &self.shared.config;
        let is_busy = |member: &Member| member.is_counted() && member.load.is_busy();
        if config.sharing != Sharing::WhileBusy || !self.members.values().any(is_busy) {
            return;
        }
        for member in self.members.values_mut().filter(|member| member.role == Role::Extra) {
            member.used_at = now.mono;
        }
        let may_be_another = |member: &Member| !member.is_counted() || member.load.is_busy();
        let Some(route) = self.base().map(|(_, base)| base.route) else { return };
        if self.members.values().all(may_be_another) && self.shared.routes[route].has_room() {
            self.share(now, route, 1);
        }
    }

    /// Ends all links, none of which has a connection, until one comes.
    fn rest(&mut self, now: Now) {
        info!("there has been no connection for a while: no link until one comes");
        for member in self.members.values_mut() {
            if member.role == Role::Base {
                self.past.restarts += member.slot.restarts;
            }
            member.retire();
        }
        (self.failbacks, self.failback_at) = (0, None);
        self.open_resting(now);
    }

    /// Puts a candidate that has proved itself in the place of the base, and of extra links on worse routes.
    fn adopt(&mut self) {
        let proved = |member: &Member| member.role == Role::Candidate && member.slot.state() == State::Active;
        let Some((&number, candidate)) = self.members.iter().find(|(_, member)| proved(member)) else { return };
        let better = candidate.route;
        let is_as_good = |base: &Member| base.route <= better && base.slot.is_established() && !base.slot.is_leaving();
        if self.base().is_some_and(|(_, base)| is_as_good(base)) {
            // The base has got there by itself.
            candidate.stop.cancel();
            return;
        }
        let worse = |member: &Member| {
            member.is_counted() && (member.route > better || member.role == Role::Base || member.slot.is_leaving())
        };
        let worse: Vec<_> =
            self.members.iter().filter(|(_, member)| worse(member)).map(|(&number, _)| number).collect();
        for number in worse {
            if let Some(old) = self.members.get_mut(&number) {
                self.past.restarts += if old.role == Role::Base { old.slot.restarts } else { 0 };
                old.retire();
            }
        }
        if let Some(candidate) = self.members.get_mut(&number) {
            candidate.role = Role::Base;
            let route = self.shared.routes[better].label();
            info!(route, through = candidate.slot.through(), "new connections go through another link from now on");
        }
        (self.failbacks, self.failback_at) = (0, None);
    }

    fn look_for_better_route(&mut self, now: Now) {
        let leaving = self.base().filter(|(_, base)| base.slot.is_leaving()).map(|(_, base)| base.route);
        let active = self.base().filter(|(_, base)| base.slot.state() == State::Active);
        // What leaves may have a successor on its own route.
        let place = leaving.map_or_else(|| active.map_or(0, |(_, base)| base.route), |route| route + 1);
        if place == 0 {
            if self.candidate().is_none() {
                (self.failbacks, self.failback_at) = (0, None);
            }
            return;
        }
        let at = match self.failback_at {
            Some(at) => at,
            None => {
                let at = now.mono + recovery::failback(1, false, &mut self.jitter);
                *self.failback_at.insert(at)
            }
        };
        if at <= now.mono && self.candidate().is_none() {
            debug!("trying whether there is a better link");
            self.open(Role::Candidate, leaving.unwrap_or(0), place);
        }
    }

    /// Chooses the link for the first of so many connections that wait, which has done so for this long; `None`: it
    /// has to wait on.
    pub(in crate::tunnel) fn assign(&mut self, now: Now, waiting: usize, waited: Duration) -> Option<usize> {
        let ready = |(_, member): &(&usize, &Member)| member.serves() && member.slot.takes_connections(now.mono);
        let free = self.members.iter().filter(ready).filter(|(_, member)| !member.slot.is_behind());
        let free = free.map(|(&number, member)| (member.load.rank(now.mono), number, member.route));
        if let Some((rank, number, place)) = free.min() {
            let shares = match self.shared.config.sharing {
                Sharing::ForConnections => rank.open > 0,
                Sharing::WhileBusy => rank.moving,
            };
            if shares && waited < SHARE_PATIENCE {
                if rank.rivals > 0 && self.shared.config.sharing == Sharing::ForConnections {
                    self.share(now, place, waiting);
                }
                // Who has begun to wait does so until they are there, or the burst would end up on the first one.
                let comes = |member: &Member| member.is_coming() && now.mono < member.opened_at + SHARE_PATIENCE;
                if self.members.values().any(comes) {
                    return None;
                }
            }
            return Some(number);
        }
        let behind = self.members.iter().filter(ready).min_by_key(|(_, member)| member.slot.backlog());
        let (number, first) = behind.map(|(&number, member)| (number, member.route))?;
        if waited < RELIEF_PATIENCE && self.relieve(now, first) { None } else { Some(number) }
    }

    /// Starts extra links for the connections that wait, as far as there may be more.
    fn share(&mut self, now: Now, route: usize, waiting: usize) {
        if now.mono < self.share_at {
            return;
        }
        let counted = self.members.values().filter(|member| member.is_counted()).count();
        let coming = self.members.values().filter(|member| member.is_coming()).count();
        let room = self.shared.config.links.saturating_sub(counted);
        for _ in 0..waiting.saturating_sub(coming).min(room) {
            info!("every link is in use: starting another");
            self.open(Role::Extra, route, self.shared.routes.len());
        }
    }

    /// Sees to it that a relief is there or on its way. Returns whether it is.
    fn relieve(&mut self, now: Now, route: usize) -> bool {
        if self.relief().is_some() {
            return true;
        }
        let usable = |member: &&mut Member| {
            member.role == Role::Retiring
                && !member.stop.is_cancelled()
                && member.slot.takes_connections(now.mono)
                && !member.slot.is_behind()
        };
        if let Some(member) = self.members.values_mut().find(usable) {
            member.role = Role::Relief;
            return true;
        }
        if now.mono < self.relief_at {
            return false;
        }
        info!("what was lost holds up new connections: starting another link for them");
        self.open(Role::Relief, route, self.shared.routes.len());
        true
    }
}
