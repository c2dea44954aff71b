//! Which inherited descriptor is which socket of the file.

use std::net::SocketAddr;
use std::rc::Rc;

use super::error::SocketError;
use super::listener::Listener;
use super::plan::SocketPlan;
use crate::core::spec::SocketAddress;

/// Finds the inherited listener for each wanted socket that was not found elsewhere, as (index, listener).
///
/// Those whose name and address agree come first, then those whose address agrees: systemd names descriptors after
/// their unit where its `.socket` file does not say `FileDescriptorName=`.
///
/// # Errors
/// [`SocketError`] names the first descriptor that is left over.
pub(super) fn match_up(
    inherited: &[Rc<Listener>],
    wanted: &[SocketPlan],
    found: &[Option<Rc<Listener>>],
) -> Result<Vec<(usize, Rc<Listener>)>, SocketError> {
    let mut left: Vec<_> = inherited.iter().collect();
    let mut open: Vec<_> = (0..wanted.len()).filter(|index| found[*index].is_none()).collect();
    let mut matched = Vec::new();
    for by_name in [true, false] {
        open.retain(|index| {
            let plan = &wanted[*index];
            let fits = |one: &&Rc<Listener>| {
                let one = one.plan();
                agree(&one, plan) && (!by_name || one.spec.name == plan.spec.name)
            };
            let position = left.iter().position(fits);
            matched.extend(position.map(|position| (*index, Rc::clone(left.remove(position)))));
            position.is_none()
        });
    }
    let Some(stranger) = left.first().map(|one| one.plan()) else { return Ok(matched) };
    let (name, what) = (stranger.spec.name.clone(), in_words(&stranger));
    Err(match open.iter().map(|index| &wanted[*index]).find(|plan| plan.spec.name == name) {
        Some(plan) => SocketError::Differs { name, what, wanted: in_words(plan) },
        None => SocketError::Unmatched { name, what },
    })
}

/// Returns whether an inherited socket is where the file wants one, and carries the same.
fn agree(inherited: &SocketPlan, wanted: &SocketPlan) -> bool {
    let is_there = match (&inherited.spec.address, &wanted.spec.address) {
        (SocketAddress::Inet(inherited), SocketAddress::Inet(wanted)) => {
            let scope = |address: &SocketAddr| match address {
                SocketAddr::V4(_) => 0,
                SocketAddr::V6(address) => address.scope_id(),
            };
            inherited.ip() == wanted.ip()
                && (wanted.port() == 0 || inherited.port() == wanted.port())
                && (scope(wanted) == 0 || scope(inherited) == scope(wanted))
        }
        (inherited, wanted) => inherited == wanted,
    };
    is_there && inherited.spec.kind == wanted.spec.kind
}

fn in_words(plan: &SocketPlan) -> String {
    format!("{}, {}", plan.spec.address, plan.spec.kind)
}
