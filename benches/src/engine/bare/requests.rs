//! The four ways to come by a request, from the slowest to the fastest.

use anyhow::{Context, Result};
use nixl_sys::{Agent, MemType, OptArgs, XferDescList, XferDlistHandle, XferOp, XferRequest};

use super::super::Engine;
use super::super::passive::Spots;

/// What is kept between the requests of one peer, and how the next one is made of it.
pub(super) struct Requests {
    way: Way,
    peer: String,
}

enum Way {
    /// Nothing: where the pieces are.
    Lists { locals: Vec<Spots>, remote: Spots },
    /// The lists.
    Fresh { locals: Vec<XferDescList<'static>>, remote: XferDescList<'static> },
    /// What NIXL made of the lists, and all indices of it.
    Prepared { locals: Vec<XferDlistHandle>, remote: XferDlistHandle, indices: Vec<i32> },
    /// The requests themselves, one for each slot.
    Repost { requests: Vec<XferRequest> },
}

impl Requests {
    /// Keeps what `engine` keeps, for transfers from the pieces at `remote` to those of each slot in `locals`.
    pub(super) fn new(
        engine: Engine,
        agent: &Agent,
        options: &OptArgs,
        locals: &[Spots],
        remote: &Spots,
        peer: &str,
    ) -> Result<Self> {
        let way = match engine {
            Engine::BareLists => Way::Lists { locals: locals.to_vec(), remote: remote.clone() },
            Engine::BarePrepared => Way::Prepared {
                // NIXL's name for an agent's own side is the empty one.
                locals: locals.iter().map(|local| prepared(agent, "", local)).collect::<Result<_>>()?,
                remote: prepared(agent, peer, remote)?,
                indices: (0..remote.len().try_into()?).collect(),
            },
            Engine::BareRepost => {
                let remote = list(remote)?;
                let request = |local| {
                    let local = list(local)?;
                    Ok(agent.create_xfer_req(XferOp::Read, &local, &remote, peer, Some(options))?)
                };
                Way::Repost { requests: locals.iter().map(request).collect::<Result<_>>()? }
            }
            _ => {
                Way::Fresh { locals: locals.iter().map(list).collect::<Result<_>>()?, remote: list(remote)? }
            }
        };
        Ok(Self { way, peer: peer.to_owned() })
    }

    /// A new request for this slot; `None` where it is [kept](Self::kept).
    pub(super) fn fresh(&self, agent: &Agent, options: &OptArgs, slot: usize) -> Result<Option<XferRequest>> {
        let create = |local, remote| {
            agent.create_xfer_req(XferOp::Read, local, remote, &self.peer, Some(options)).map(Some)
        };
        let request = match &self.way {
            Way::Lists { locals, remote } => create(&list(&locals[slot])?, &list(remote)?),
            Way::Fresh { locals, remote } => create(&locals[slot], remote),
            Way::Prepared { locals, remote, indices } => agent
                .make_xfer_req(XferOp::Read, &locals[slot], indices, remote, indices, Some(options))
                .map(Some),
            Way::Repost { .. } => Ok(None),
        };
        request.context("NIXL did not make a request")
    }

    /// The request that is posted each time.
    ///
    /// # Panics
    /// None is kept.
    pub(super) fn kept(&self, slot: usize) -> &XferRequest {
        match &self.way {
            Way::Repost { requests } => &requests[slot],
            _ => unreachable!("a fresh request was made"),
        }
    }
}

fn list(spots: &Spots) -> Result<XferDescList<'static>> {
    let mut list = XferDescList::new(MemType::Dram)?;
    spots.iter().for_each(|(addr, len)| list.add_desc(*addr, *len, 0));
    Ok(list)
}

fn prepared(agent: &Agent, peer: &str, spots: &Spots) -> Result<XferDlistHandle> {
    agent.prepare_xfer_dlist(peer, &list(spots)?, None).context("NIXL did not prepare a list")
}
