//! The options that any process may set on a socket that it shares, whoever made the socket: one table, read and put back.
//!
//! The table has every option of socket(7), ip(7), ipv6(7), tcp(7), udp(7) and unix(7) that takes no privilege to set, that
//! can be read, and that stays. Numbers that libc lacks are those of the kernel's headers. What is left out, and why:
//!
//! - multicast groups, IPv6 flow labels and anycast addresses: they add what arrives and take nothing away;
//! - `SO_ATTACH_REUSEPORT_*`: it takes `SO_REUSEPORT` at bind(2), and can only choose among the sockets of one owner;
//! - `SO_INCOMING_CPU`: a hint, which the kernel itself changes for datagrams;
//! - `SO_TXTIME`, `SO_CNX_ADVICE`, `SO_BUSY_POLL_BUDGET`, `TCP_FASTOPEN_KEY`: without effect on what arrives;
//! - `IPV6_MTU`, `IPV6_PKTINFO`: they cannot be read, and only lead where a datagram sent by IPv6 goes; see [`forget_unseen`];
//! - `SO_LOCK_FILTER`: it matters where there is a filter, see [`Row::name`] `SO_ATTACH_FILTER`;
//! - keys of TCP, which are no option that can be read: see [`super::tcp_keys`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;

use libc::{
    IPPROTO_IP as IP, IPPROTO_IPV6 as IPV6, IPPROTO_TCP as TCP, IPPROTO_UDP as UDP, SOL_SOCKET as SOCKET,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};

use super::options::{self, SocketOption, Value, get_bytes, set_bytes};

/// What an option does to those who share the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Clients are not heard or not answered, or others can take what is meant for the socket. No program that shares a
    /// socket has a use for it.
    Deafens,
    /// A program may have its reasons, and clients of another program may suffer.
    Tunes,
}

/// How an option is read and put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// What getsockopt(2) returns, setsockopt(2) takes.
    Plain,
    /// A size that the kernel doubles.
    Buffer(SocketOption),
    /// A flag of the open file description.
    Flag(OFlag),
    /// A filter: how many instructions it has.
    Filter,
    /// The kernel shows a default that setsockopt(2) refuses; this one stands for it.
    OrElse(c_int),
    /// Nothing changes it back.
    ForGood,
}

/// An option.
#[derive(Debug)]
pub struct Row {
    /// As the manual pages have it.
    pub name: &'static str,
    level: c_int,
    number: c_int,
    effect: Effect,
    form: Form,
}

impl Eq for Row {}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

const fn tunes(name: &'static str, level: c_int, number: c_int) -> Row {
    Row { name, level, number, effect: Effect::Tunes, form: Form::Plain }
}

const fn deafens(name: &'static str, level: c_int, number: c_int) -> Row {
    Row { name, level, number, effect: Effect::Deafens, form: Form::Plain }
}

impl Row {
    const fn by(self, form: Form) -> Self {
        Self { form, ..self }
    }

    /// Whether it is the option of a service file.
    fn is(&self, option: SocketOption) -> bool {
        match self.form {
            Form::Flag(flag) => {
                option == SocketOption::NonBlocking && flag.bits() == OFlag::O_NONBLOCK.bits()
            }
            _ if option == SocketOption::NonBlocking => false,
            // The same by number.
            _ if option == SocketOption::BindToDevice => self.name == "SO_BINDTODEVICE",
            _ => option.number() == (self.level, self.number),
        }
    }

    /// Whether only a new socket is rid of what was done.
    pub fn is_for_good(&self) -> bool {
        self.form == Form::ForGood
    }
}

/// All of them.
static ROWS: &[Row] = &[
    tunes("O_NONBLOCK", 0, 0).by(Form::Flag(OFlag::O_NONBLOCK)),
    tunes("O_ASYNC", 0, 0).by(Form::Flag(OFlag::O_ASYNC)),
    tunes("O_APPEND", 0, 0).by(Form::Flag(OFlag::O_APPEND)),
    deafens("SO_ATTACH_FILTER", SOCKET, libc::SO_ATTACH_FILTER).by(Form::Filter),
    deafens("SO_BINDTODEVICE", SOCKET, libc::SO_BINDTOIFINDEX),
    deafens("SO_DONTROUTE", SOCKET, libc::SO_DONTROUTE),
    // Another user could bind the address of a datagram socket, too.
    deafens("SO_REUSEADDR", SOCKET, libc::SO_REUSEADDR),
    deafens("SO_REUSEPORT", SOCKET, libc::SO_REUSEPORT),
    // IPV6_ADDRFORM makes a socket of IPv6 one of IPv4.
    deafens("SO_DOMAIN", SOCKET, libc::SO_DOMAIN).by(Form::ForGood),
    tunes("SO_BROADCAST", SOCKET, libc::SO_BROADCAST),
    tunes("SO_SNDBUF", SOCKET, libc::SO_SNDBUF).by(Form::Buffer(SocketOption::SendBuffer)),
    tunes("SO_RCVBUF", SOCKET, libc::SO_RCVBUF).by(Form::Buffer(SocketOption::ReceiveBuffer)),
    tunes("SO_KEEPALIVE", SOCKET, libc::SO_KEEPALIVE),
    tunes("SO_OOBINLINE", SOCKET, libc::SO_OOBINLINE),
    tunes("SO_NO_CHECK", SOCKET, libc::SO_NO_CHECK),
    tunes("SO_LINGER", SOCKET, libc::SO_LINGER),
    tunes("SO_PASSCRED", SOCKET, libc::SO_PASSCRED),
    tunes("SO_PASSSEC", SOCKET, libc::SO_PASSSEC),
    tunes("SO_PASSPIDFD", SOCKET, 76),
    tunes("SO_PASSRIGHTS", SOCKET, 83),
    tunes("SO_RCVLOWAT", SOCKET, libc::SO_RCVLOWAT),
    tunes("SO_RCVTIMEO", SOCKET, libc::SO_RCVTIMEO),
    tunes("SO_SNDTIMEO", SOCKET, libc::SO_SNDTIMEO),
    tunes("SO_TIMESTAMP", SOCKET, libc::SO_TIMESTAMP),
    tunes("SO_TIMESTAMPNS", SOCKET, libc::SO_TIMESTAMPNS),
    tunes("SO_TIMESTAMPING", SOCKET, libc::SO_TIMESTAMPING),
    tunes("SO_TIMESTAMP_NEW", SOCKET, 63),
    tunes("SO_TIMESTAMPNS_NEW", SOCKET, 64),
    tunes("SO_TIMESTAMPING_NEW", SOCKET, 65),
    tunes("SO_RXQ_OVFL", SOCKET, libc::SO_RXQ_OVFL),
    tunes("SO_WIFI_STATUS", SOCKET, 41),
    tunes("SO_PEEK_OFF", SOCKET, libc::SO_PEEK_OFF),
    tunes("SO_NOFCS", SOCKET, 43),
    tunes("SO_SELECT_ERR_QUEUE", SOCKET, 45),
    tunes("SO_BUSY_POLL", SOCKET, libc::SO_BUSY_POLL),
    tunes("SO_PREFER_BUSY_POLL", SOCKET, 69),
    tunes("SO_MAX_PACING_RATE", SOCKET, libc::SO_MAX_PACING_RATE),
    tunes("SO_ZEROCOPY", SOCKET, libc::SO_ZEROCOPY),
    tunes("SO_TXREHASH", SOCKET, 74),
    tunes("SO_MARK", SOCKET, libc::SO_MARK),
    tunes("SO_RCVMARK", SOCKET, 75),
    tunes("SO_RCVPRIORITY", SOCKET, 82),
    deafens("IP_MINTTL", IP, libc::IP_MINTTL),
    tunes("IP_TOS", IP, libc::IP_TOS),
    // Behind IP_TOS, which sets it (ip(7)).
    tunes("SO_PRIORITY", SOCKET, libc::SO_PRIORITY),
    tunes("IP_TTL", IP, libc::IP_TTL),
    tunes("IP_OPTIONS", IP, libc::IP_OPTIONS),
    tunes("IP_RECVOPTS", IP, libc::IP_RECVOPTS),
    tunes("IP_RETOPTS", IP, libc::IP_RETOPTS),
    tunes("IP_PKTINFO", IP, libc::IP_PKTINFO),
    tunes("IP_MTU_DISCOVER", IP, libc::IP_MTU_DISCOVER),
    tunes("IP_RECVERR", IP, libc::IP_RECVERR),
    tunes("IP_RECVTTL", IP, libc::IP_RECVTTL),
    tunes("IP_RECVTOS", IP, libc::IP_RECVTOS),
    tunes("IP_FREEBIND", IP, libc::IP_FREEBIND),
    tunes("IP_PASSSEC", IP, 18),
    tunes("IP_TRANSPARENT", IP, libc::IP_TRANSPARENT),
    tunes("IP_RECVORIGDSTADDR", IP, 20),
    tunes("IP_CHECKSUM", IP, 23),
    tunes("IP_BIND_ADDRESS_NO_PORT", IP, libc::IP_BIND_ADDRESS_NO_PORT),
    tunes("IP_RECVFRAGSIZE", IP, 25),
    tunes("IP_RECVERR_RFC4884", IP, 26),
    tunes("IP_MULTICAST_IF", IP, libc::IP_MULTICAST_IF),
    tunes("IP_MULTICAST_TTL", IP, libc::IP_MULTICAST_TTL),
    tunes("IP_MULTICAST_LOOP", IP, libc::IP_MULTICAST_LOOP),
    tunes("IP_MULTICAST_ALL", IP, libc::IP_MULTICAST_ALL),
    tunes("IP_UNICAST_IF", IP, 50),
    tunes("IP_LOCAL_PORT_RANGE", IP, 51),
    deafens("IPV6_MINHOPCOUNT", IPV6, 73),
    tunes("IPV6_2292PKTINFO", IPV6, 2),
    tunes("IPV6_2292HOPOPTS", IPV6, 3),
    tunes("IPV6_2292DSTOPTS", IPV6, 4),
    tunes("IPV6_2292RTHDR", IPV6, 5),
    tunes("IPV6_2292HOPLIMIT", IPV6, 8),
    tunes("IPV6_FLOWINFO", IPV6, 11),
    tunes("IPV6_UNICAST_HOPS", IPV6, libc::IPV6_UNICAST_HOPS),
    tunes("IPV6_MULTICAST_IF", IPV6, libc::IPV6_MULTICAST_IF),
    tunes("IPV6_MULTICAST_HOPS", IPV6, libc::IPV6_MULTICAST_HOPS),
    tunes("IPV6_MULTICAST_LOOP", IPV6, libc::IPV6_MULTICAST_LOOP),
    tunes("IPV6_MTU_DISCOVER", IPV6, libc::IPV6_MTU_DISCOVER),
    tunes("IPV6_RECVERR", IPV6, libc::IPV6_RECVERR),
    tunes("IPV6_MULTICAST_ALL", IPV6, 29),
    tunes("IPV6_ROUTER_ALERT_ISOLATE", IPV6, 30),
    tunes("IPV6_RECVERR_RFC4884", IPV6, 31),
    tunes("IPV6_FLOWINFO_SEND", IPV6, 33),
    tunes("IPV6_RECVPKTINFO", IPV6, libc::IPV6_RECVPKTINFO),
    tunes("IPV6_RECVHOPLIMIT", IPV6, libc::IPV6_RECVHOPLIMIT),
    tunes("IPV6_RECVHOPOPTS", IPV6, libc::IPV6_RECVHOPOPTS),
    tunes("IPV6_RECVRTHDR", IPV6, libc::IPV6_RECVRTHDR),
    tunes("IPV6_RTHDR", IPV6, libc::IPV6_RTHDR),
    tunes("IPV6_RECVDSTOPTS", IPV6, libc::IPV6_RECVDSTOPTS),
    tunes("IPV6_RECVPATHMTU", IPV6, libc::IPV6_RECVPATHMTU),
    tunes("IPV6_DONTFRAG", IPV6, libc::IPV6_DONTFRAG),
    tunes("IPV6_RECVTCLASS", IPV6, libc::IPV6_RECVTCLASS),
    tunes("IPV6_TCLASS", IPV6, libc::IPV6_TCLASS),
    tunes("IPV6_AUTOFLOWLABEL", IPV6, 70),
    tunes("IPV6_ADDR_PREFERENCES", IPV6, 72),
    tunes("IPV6_RECVORIGDSTADDR", IPV6, 74),
    tunes("IPV6_TRANSPARENT", IPV6, 75),
    tunes("IPV6_UNICAST_IF", IPV6, 76),
    tunes("IPV6_RECVFRAGSIZE", IPV6, 77),
    tunes("IPV6_FREEBIND", IPV6, 78),
    deafens("TCP_ULP", TCP, libc::TCP_ULP).by(Form::ForGood),
    deafens("TCP_TX_DELAY", TCP, 37),
    tunes("TCP_NODELAY", TCP, libc::TCP_NODELAY),
    tunes("TCP_MAXSEG", TCP, libc::TCP_MAXSEG).by(Form::OrElse(0)),
    tunes("TCP_CORK", TCP, libc::TCP_CORK),
    tunes("TCP_KEEPIDLE", TCP, libc::TCP_KEEPIDLE),
    tunes("TCP_KEEPINTVL", TCP, libc::TCP_KEEPINTVL),
    tunes("TCP_KEEPCNT", TCP, libc::TCP_KEEPCNT),
    tunes("TCP_SYNCNT", TCP, libc::TCP_SYNCNT),
    tunes("TCP_LINGER2", TCP, libc::TCP_LINGER2),
    tunes("TCP_DEFER_ACCEPT", TCP, libc::TCP_DEFER_ACCEPT),
    // The largest window that there is; the 0 of before is refused while the socket listens.
    tunes("TCP_WINDOW_CLAMP", TCP, libc::TCP_WINDOW_CLAMP).by(Form::OrElse(65_535 << 14)),
    tunes("TCP_QUICKACK", TCP, libc::TCP_QUICKACK),
    tunes("TCP_CONGESTION", TCP, libc::TCP_CONGESTION),
    tunes("TCP_THIN_LINEAR_TIMEOUTS", TCP, 16),
    tunes("TCP_USER_TIMEOUT", TCP, libc::TCP_USER_TIMEOUT),
    tunes("TCP_FASTOPEN", TCP, libc::TCP_FASTOPEN),
    tunes("TCP_NOTSENT_LOWAT", TCP, 25),
    tunes("TCP_SAVE_SYN", TCP, 27),
    tunes("TCP_FASTOPEN_NO_COOKIE", TCP, 34),
    tunes("TCP_INQ", TCP, 36),
    tunes("TCP_RTO_MAX_MS", TCP, 44),
    tunes("TCP_RTO_MIN_US", TCP, 45),
    tunes("TCP_DELACK_MAX_US", TCP, 46),
    tunes("UDP_CORK", UDP, 1),
    deafens("UDP_ENCAP", UDP, 100),
    tunes("UDP_NO_CHECK6_TX", UDP, 101),
    tunes("UDP_NO_CHECK6_RX", UDP, 102),
    tunes("UDP_SEGMENT", UDP, 103),
    tunes("UDP_GRO", UDP, 104),
];

/// The longest value that is kept, in bytes: that of `IP_OPTIONS` has 40.
const LONGEST: usize = 64;

/// `struct in6_pktinfo` of ipv6(7), all zeros.
const NO_PACKET_INFO: [u8; 20] = [0; 20];

/// What the options of a socket are, by name; those that its kind does not have are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Values(BTreeMap<String, Vec<u8>>);

impl Values {
    /// Reads all options.
    pub fn read(fd: impl AsFd) -> Self {
        let values = ROWS.iter().filter_map(|row| Some((row.name.to_owned(), row.read(&fd).ok()?)));
        Self(values.collect())
    }

    /// Returns the options that are otherwise now: those that deafen and those that `named` has, or else all others.
    pub fn differing(
        &self,
        fd: impl AsFd,
        named: &BTreeSet<SocketOption>,
        effect: Effect,
    ) -> Vec<&'static Row> {
        let is_asked = |row: &&Row| {
            let is_fixed = row.effect == Effect::Deafens || named.iter().any(|option| row.is(*option));
            is_fixed == (effect == Effect::Deafens)
        };
        let differs = |row: &&'static Row| {
            let known = self.0.get(row.name);
            known.is_some_and(|known| row.read(&fd).ok().as_ref() != Some(known))
        };
        ROWS.iter().filter(is_asked).filter(differs).collect()
    }

    /// Puts an option back.
    ///
    /// # Errors
    /// Those of setsockopt(2). Unsupported where nothing changes it back.
    pub fn put_back(&mut self, fd: impl AsFd, row: &Row) -> io::Result<()> {
        let Some(known) = self.0.get_mut(row.name) else { return Ok(()) };
        row.write(&fd, known)?;
        // Where another value stands for the one of before, it reads otherwise.
        *known = row.read(&fd)?;
        Ok(())
    }

    /// Takes the present values of the options that tune for those to be kept.
    pub fn accept(&mut self, fd: impl AsFd, named: &BTreeSet<SocketOption>) {
        for row in self.differing(&fd, named, Effect::Tunes) {
            if let Ok(value) = row.read(&fd) {
                self.0.insert(row.name.to_owned(), value);
            }
        }
    }

    /// Does something to the options, and takes over what changed by that.
    pub fn change<T>(&mut self, fd: impl AsFd, action: impl FnOnce() -> T) -> T {
        let before = Self::read(&fd);
        let done = action();
        for (name, value) in Self::read(&fd).0 {
            if before.0.get(&name) != Some(&value) {
                self.0.insert(name, value);
            }
        }
        done
    }
}

impl Row {
    fn read(&self, fd: &impl AsFd) -> io::Result<Vec<u8>> {
        match self.form {
            Form::Flag(flag) => {
                let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
                Ok(vec![u8::from(flags.contains(flag))])
            }
            Form::Buffer(option) => match options::get(fd, option)? {
                Value::Buffer { bytes, fixed } => Ok([&bytes.to_ne_bytes()[..], &[u8::from(fixed)]].concat()),
                Value::Number(_) | Value::Text(_) => Err(io::ErrorKind::InvalidData.into()),
            },
            Form::Filter => filter_length(fd).map(|length| length.to_ne_bytes().to_vec()),
            Form::Plain | Form::OrElse(_) | Form::ForGood => {
                let mut value = [0; LONGEST];
                let length = get_bytes(fd, self.level, self.number, &mut value)?;
                Ok(value[..length].to_vec())
            }
        }
    }

    fn write(&self, fd: &impl AsFd, value: &[u8]) -> io::Result<()> {
        match (self.form, value) {
            (Form::Flag(flag), _) => {
                let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
                flags.set(flag, value == [1]);
                fcntl(fd, FcntlArg::F_SETFL(flags))?;
                Ok(())
            }
            (Form::Buffer(option), [a, b, c, d, fixed]) => {
                let bytes = i32::from_ne_bytes([*a, *b, *c, *d]);
                options::set(fd, option, &Value::Buffer { bytes, fixed: *fixed != 0 })
            }
            // It is not kept what a filter was: where there was one, only the process that set it knows.
            (Form::Filter, [0, 0, 0, 0]) => {
                set_bytes(fd, self.level, libc::SO_DETACH_FILTER, &0_i32.to_ne_bytes())
            }
            (Form::Buffer(_) | Form::Filter | Form::ForGood, _) => Err(io::ErrorKind::Unsupported.into()),
            (Form::OrElse(other), _) => set_bytes(fd, self.level, self.number, value)
                .or_else(|_| set_bytes(fd, self.level, self.number, &other.to_ne_bytes())),
            (Form::Plain, _) => set_bytes(fd, self.level, self.number, value),
        }
    }
}

/// Returns how many instructions the filter of a socket has, 0 without one; of one that is a BPF program it is not told, and
/// counts as -1.
fn filter_length(fd: &impl AsFd) -> io::Result<i32> {
    let (result, length) = options::length_of(fd, SOCKET, libc::SO_ATTACH_FILTER);
    match result {
        Ok(()) => Ok(i32::try_from(length).unwrap_or(i32::MAX)),
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(-1),
        Err(error) => Err(error),
    }
}

/// Undoes what nothing shows: the interface and the address of our own from which IPv6 datagrams go.
pub fn forget_unseen(fd: impl AsFd) {
    // It has none where it is no socket of IPv6.
    let _ = set_bytes(&fd, IPV6, libc::IPV6_PKTINFO, &NO_PACKET_INFO);
}

#[cfg(test)]
pub(crate) mod tests {
    #![expect(unsafe_code, reason = "a thread becomes another user, and a filter is given by its address")]

    use std::net::SocketAddr;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use nix::unistd::geteuid;

    use super::*;
    use crate::plain::{SocketAddress, SocketKind};
    use crate::sys::listener::tests::reachable;
    use crate::sys::listener::{bind, create, listen};

    /// Attaches a filter that lets nothing pass, or locks it there: as another user, where the kernel lets that one.
    pub(crate) fn attach_filter(fd: impl AsFd, is_locked: bool) {
        let copy = fd.as_fd().try_clone_to_owned().unwrap();
        // Newer kernels refuse it for TCP.
        match as_another_user(|| attach(&copy, is_locked)) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => attach(fd, is_locked).unwrap(),
            attached => attached.unwrap(),
        }
    }

    fn attach(fd: impl AsFd, is_locked: bool) -> io::Result<()> {
        let code = [libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }];
        let filter = libc::sock_fprog { len: 1, filter: code.as_ptr().cast_mut() };
        // SAFETY: a `sock_fprog` is plain data, and the kernel copies the code that it points to.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const filter).cast::<u8>(), size_of::<libc::sock_fprog>())
        };
        set_bytes(&fd, SOCKET, libc::SO_ATTACH_FILTER, bytes)?;
        if is_locked {
            set_bytes(&fd, SOCKET, libc::SO_LOCK_FILTER, &1_i32.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Does something as a user without any privilege; as root it takes a thread that becomes one.
    pub(crate) fn as_another_user<T: Send>(action: impl FnOnce() -> T + Send) -> T {
        if !geteuid().is_root() {
            return action();
        }
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: it takes three numbers. Unlike that of the C library, the call of the kernel is for this thread.
                assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 1, 1, 1) }, 0);
                action()
            });
            thread.join().unwrap()
        })
    }

    /// What a worker may be given.
    fn sockets() -> Vec<(String, Box<dyn Fn() -> OwnedFd>)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut sockets: Vec<(String, Box<dyn Fn() -> OwnedFd>)> = Vec::new();
        let make = |address: &SocketAddress, kind: SocketKind| {
            let socket = create(address, kind).unwrap();
            bind(&socket, address).unwrap();
            if kind.is_listened_on() {
                listen(&socket, 5).unwrap();
            }
            socket
        };
        for address in reachable(["127.0.0.1:0", "[::1]:0", "[::]:0"]) {
            for kind in [SocketKind::Stream, SocketKind::Datagram] {
                let address = SocketAddress::Inet(address.parse::<SocketAddr>().unwrap());
                sockets.push((format!("{address} {kind}"), Box::new(move || make(&address, kind))));
            }
        }
        for kind in [SocketKind::Stream, SocketKind::Datagram, SocketKind::Seqpacket] {
            sockets.push((
                format!("UNIX {kind}"),
                Box::new(move || {
                    let number = NEXT.fetch_add(1, Ordering::Relaxed);
                    let name = format!("liveswap-options-{}-{number}", std::process::id());
                    make(&SocketAddress::Abstract(name.into()), kind)
                }),
            ));
        }
        sockets
    }

    /// By level and number: what no row stands for, see above.
    const LEFT_OUT: &[(c_int, c_int)] = &[
        (SOCKET, libc::SO_LOCK_FILTER),
        (SOCKET, libc::SO_INCOMING_CPU),
        (SOCKET, 61), // SO_TXTIME
        (SOCKET, 72), // SO_BUF_LOCK: with the buffers
        (TCP, libc::TCP_FASTOPEN_KEY),
    ];

    fn raw(fd: &OwnedFd, level: c_int, number: c_int) -> Option<Vec<u8>> {
        let mut value = [0; 128];
        let length = get_bytes(fd, level, number, &mut value).ok()?;
        Some(value[..length].to_vec())
    }

    /// What is tried for every option: numbers, `struct linger`, `struct timeval`, names, and options of ip(7).
    fn values() -> Vec<Vec<u8>> {
        let numbers = [1, 0, 2, 60, 255, 0x140, 1400].map(|number: i32| number.to_ne_bytes().to_vec());
        let linger = [1_i32, 9].map(i32::to_ne_bytes).concat();
        let time = [1_i64, 0].map(i64::to_ne_bytes).concat();
        let route = vec![0, 2, 4, 0, 0, 0, 0, 0];
        [
            &numbers[..],
            &[linger, time, b"reno\0".to_vec(), b"cubic\0".to_vec(), vec![1, 1, 1, 1], vec![7; 16], route],
        ]
        .concat()
    }

    #[test]
    fn whatever_another_user_may_set_is_noticed_and_put_back() {
        if !geteuid().is_root() {
            crate::skipped::add("only root can become another user");
            return;
        }
        let none = BTreeSet::new();
        let mut changed = BTreeSet::new();
        for (what, make) in sockets() {
            for level in [SOCKET, IP, IPV6, TCP, UDP] {
                for number in 1..=110 {
                    let socket = make();
                    let mut kept = Values::read(&socket);
                    let before = raw(&socket, level, number);
                    let is_changed = as_another_user(|| {
                        values().iter().any(|value| {
                            // A filter is no value, but has an address.
                            !(level == SOCKET && [26, 27, 50, 51, 52].contains(&number))
                                && set_bytes(&socket, level, number, value).is_ok()
                                && raw(&socket, level, number) != before
                        })
                    });
                    if !is_changed || LEFT_OUT.contains(&(level, number)) {
                        continue;
                    }
                    let differing = [Effect::Deafens, Effect::Tunes]
                        .map(|effect| kept.differing(&socket, &none, effect))
                        .concat();
                    assert!(!differing.is_empty(), "{what}: level {level}, option {number} goes unnoticed");
                    for row in differing {
                        kept.put_back(&socket, row)
                            .unwrap_or_else(|error| panic!("{what}: {}: {error}", row.name));
                        changed.insert(row.name);
                    }
                    for effect in [Effect::Deafens, Effect::Tunes] {
                        assert_eq!(
                            kept.differing(&socket, &none, effect),
                            [] as [&Row; 0],
                            "{what}: {number}"
                        );
                    }
                }
            }
        }
        // So that the test is one: these are of all the manual pages.
        for name in [
            "SO_DONTROUTE",
            "SO_RCVBUF",
            "SO_RCVTIMEO",
            "SO_LINGER",
            "SO_BINDTODEVICE",
            "IP_MINTTL",
            "IP_OPTIONS",
            "IP_TTL",
            "TCP_DEFER_ACCEPT",
            "TCP_MAXSEG",
            "TCP_WINDOW_CLAMP",
            "TCP_USER_TIMEOUT",
            "TCP_TX_DELAY",
            "TCP_FASTOPEN",
            "TCP_CONGESTION",
            "UDP_CORK",
            "UDP_ENCAP",
            "SO_PASSCRED",
            "SO_PEEK_OFF",
        ] {
            assert!(changed.contains(name), "{name} was not tried: {changed:?}");
        }
    }

    #[test]
    fn flags_and_filters_are_noticed_and_put_back_and_a_locked_filter_is_beyond_that() {
        let none = BTreeSet::new();
        for (what, make) in sockets() {
            let socket = make();
            let mut kept = Values::read(&socket);
            attach_filter(&socket, false);
            as_another_user(|| {
                fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_ASYNC)).unwrap();
            });
            let names = |kept: &Values, effect| {
                let rows = kept.differing(&socket, &none, effect).into_iter();
                rows.map(|row| row.name).collect::<Vec<_>>()
            };
            assert_eq!(names(&kept, Effect::Deafens), ["SO_ATTACH_FILTER"], "{what}");
            assert_eq!(names(&kept, Effect::Tunes), ["O_NONBLOCK", "O_ASYNC"], "{what}");
            for row in [Effect::Deafens, Effect::Tunes].map(|it| kept.differing(&socket, &none, it)).concat()
            {
                kept.put_back(&socket, row).unwrap();
            }
            assert_eq!(kept, Values::read(&socket), "{what}");
            attach_filter(&socket, true);
            let [locked] = kept.differing(&socket, &none, Effect::Deafens)[..] else { panic!("{what}") };
            let error = kept.put_back(&socket, locked).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn what_the_service_file_names_is_put_back_and_what_else_tunes_is_accepted() {
        let socket =
            create(&SocketAddress::Inet("127.0.0.1:0".parse().unwrap()), SocketKind::Stream).unwrap();
        let named = BTreeSet::from([SocketOption::NoDelay, SocketOption::NonBlocking]);
        let mut kept = Values::read(&socket);
        for (option, value) in
            [(SocketOption::NoDelay, 1), (SocketOption::NonBlocking, 1), (SocketOption::DeferAccept, 1)]
        {
            options::set(&socket, option, &Value::Number(value)).unwrap();
        }
        let changed = |kept: &Values, effect| {
            let rows = kept.differing(&socket, &named, effect).into_iter();
            rows.map(|row| row.name).collect::<Vec<_>>()
        };
        assert_eq!(changed(&kept, Effect::Deafens), ["O_NONBLOCK", "TCP_NODELAY"]);
        assert_eq!(changed(&kept, Effect::Tunes), ["TCP_DEFER_ACCEPT"]);
        kept.accept(&socket, &named);
        assert_eq!(changed(&kept, Effect::Tunes), [""; 0]);
        assert_eq!(changed(&kept, Effect::Deafens), ["O_NONBLOCK", "TCP_NODELAY"]);
        options::set(&socket, SocketOption::DeferAccept, &Value::Number(30)).unwrap();
        let [row] = kept.differing(&socket, &named, Effect::Tunes)[..] else { panic!("one") };
        kept.put_back(&socket, row).unwrap();
        assert_eq!(options::get(&socket, SocketOption::DeferAccept).unwrap(), Value::Number(1));
    }
}
