//! The paths of the workers' notify sockets, which a cleaner of old files may remove.

use tracing::warn;

use super::process::LAST_WORDS;
use super::run::Daemon;
use super::token::{Token, Watched};
use crate::core::ids::{GenerationId, WorkerId};
use crate::core::spec::Protocol;
use crate::sys::notify_socket::NotifySocket;
use crate::sys::reach::{Closed, closed_above};
use crate::sys::wait::Interest;

impl Daemon {
    /// Has the kernel tell us when the path of a notify socket is removed.
    pub(super) fn with_watch(&self, mut notify: NotifySocket) -> NotifySocket {
        if let Some(watch) = self.sockets.watch() {
            notify.watch_path(watch);
        }
        notify
    }

    /// Says where workers of another user cannot reach their notify sockets, once for each generation: they would never be ready, without
    /// a reason.
    pub(super) fn look_at_way_to_notify_sockets(&mut self, generation: GenerationId) {
        if self.loose_ends.way_of == Some(generation) {
            return;
        }
        self.loose_ends.way_of = Some(generation);
        let Some(release) = self.generations.get(&generation).map(|of| &of.release) else { return };
        let Some(who) =
            release.credentials.as_ref().filter(|_| release.spec.process.protocol == Protocol::Notify)
        else {
            return;
        };
        let groups: Vec<u32> = who.groups.iter().copied().chain([who.gid]).collect();
        let notify = self.runtime.notify();
        if let Some(Closed { folder, mode, owner }) = closed_above(&notify.join("socket"), who.uid, &groups) {
            warn!(
                "generation {generation}: workers of user {} cannot reach their notify sockets in {}, and so cannot say READY=1: {} is closed to \
                 them (mode {mode:04o}, user {owner}); open it (chmod o+x), or set RUNTIME_DIRECTORY to a folder that they can reach",
                who.uid,
                notify.display(),
                folder.display()
            );
        }
    }

    /// Watches the paths of all notify sockets again, after the manager has replaced itself.
    pub(super) fn watch_notify_paths(&mut self) {
        let Some(watch) = self.sockets.watch() else { return };
        for notify in self.processes.values_mut().filter_map(|process| process.notify.as_mut()) {
            notify.watch_path(watch);
        }
    }

    /// Binds the notify sockets anew whose paths somebody has removed: their workers would be silent from then on, and be taken for dead.
    pub(super) fn mend_notify_sockets(&mut self) {
        let is_lost = |notify: &Watched<NotifySocket>| !notify.is_in_place();
        let lost = self.processes.iter().filter(|(_, process)| process.notify.as_ref().is_some_and(is_lost));
        let lost: Vec<WorkerId> = lost.map(|(worker, _)| *worker).collect();
        if lost.is_empty() {
            return;
        }
        let mut bound_anew = 0;
        for worker in &lost {
            // What was said before the removal waits in the socket of before.
            self.listen(*worker, LAST_WORDS);
            let Some(path) = self.processes.get(worker).and_then(|process| process.notify.as_ref()) else {
                continue;
            };
            let path = path.path().to_owned();
            let Some(bound) = self.speak_again(*worker, &path) else { continue };
            let bound = Watched::from(self.with_watch(bound));
            let Some(process) = self.processes.get_mut(worker) else { continue };
            let _ = bound.watch(&self.host.poller, Token::Notify(*worker), Interest::Read);
            if let Some(mut before) = process.notify.replace(bound) {
                before.forget_path();
            }
            bound_anew += 1;
        }
        let folder = self.runtime.notify();
        warn!("{bound_anew} of the sockets in {} were removed; they are bound anew", folder.display());
        self.journal.needs_snapshot();
    }
}
