"""Words whose meaning is known beforehand: English, as logs write it, in lower case unless said otherwise.

They are part of what a template means: with other ones, vocabularies need a new schema.
"""


def _of(text: str) -> frozenset[str]:
    return frozenset(text.split())


SEVERITIES = _of("""
    emerg emergency panic alert crit critical fatal fata ftl severe err erro error errors warn wrn warning warnings
    notice inf info information informational verbose debug debu debg dbg trace trac trc audit log
""")

_STATES = _of("""
    start started starting stop stopped stopping pause paused pausing resume resumed resuming restart restarted
    restarting begin began begun beginning end ended ending finish finished finishing complete completed completing
    incomplete done
    open opened opening close closed closing up down online offline on off yes no true false
    enable enabled enabling disable disabled disabling attach attached detach detached mount mounted unmount unmounted
    connect connected connecting disconnect disconnected disconnecting reconnect reconnected reconnecting
    success successful successfully succeed succeeded succeeds ok okay pass passed fail failed failing fails failure
    failures accept accepted accepting allow allowed permit permitted grant granted authorized authenticated
    deny denied reject rejected rejecting refused blocked dropped forbidden unauthorized unauthenticated
    valid invalid healthy unhealthy alive dead active inactive idle busy ready unready locked unlocked
    available unavailable reachable unreachable found missing present absent known unknown normal abnormal
    create created creating delete deleted deleting add added adding remove removed removing insert inserted
    update updated updating read reading write writing written load loaded loading unload unloaded unloading
    send sending sent receive received receiving acquire acquired acquiring release released releasing
    enter entered entering exit exited exiting join joined joining login logout logon logoff
    expired timeout abort aborted aborting cancel canceled cancelled kill killed crash crashed
    running suspended terminated terminating pending queued scheduled retry retrying recovered recovering rollback
    commit committed degraded overloaded overflow underflow reset reverted increased decreased
    primary secondary master slave leader follower
""")

TROUBLE = _of("""
    not cannot can't couldn't could unable without never exception exceptions fault faults faulty bad broken corrupt
    corrupted corruption lost loss illegal mismatch violation oops segfault traceback deadlock leak exceeded exhausted
    full interrupted unexpected unrecoverable uncorrectable malformed
""")
"""Words that say that something is wrong, or the opposite of the rest: a line with one is like no line without it."""

TROUBLE_ENDINGS = ("exception", "error", "failure", "fault")
"""How names of such things end: `java.io.IOException`."""

DECISIVE = SEVERITIES | _STATES
"""Words that tell events apart however often the others change: no learning makes them a value."""

DECISIVE_MARKS = _of("I0 W0 E0 F0 V D I W E F")
"""Letters of severity in upper case, as klog (before digits) and Android write them."""

PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
"""Severities of syslog by their numbers (RFC 5424, 6.2.1)."""

ENTITY_KEYS = _of("user username usr host hostname rhost ruser logname account")
"""What follows one of these is somebody's name."""

PREPOSITIONS = _of("for from by as to client named called")
"""What follows one of these is often somebody's name."""

NOTHING = _of("null nil nan undefined")
"""Stands where a value would."""

UNITS = _of("""
    b byte bytes k kb kib m mb mib g gb gib tb tib ns us ms s sec secs second seconds min mins minute minutes
    h hour hours day days hz khz mhz ghz kbps mbps gbps percent pages
""")
"""Belongs to the number before it."""

CALENDAR = _of("""
    Mon Tue Wed Thu Fri Sat Sun Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec
    CET CEST UTC GMT EST EDT PST PDT MSK JST AM PM
""")
"""As they are written here, beside a value, part of a time."""

STOP_WORDS = _of("""
    a an the of for to in on at by is are was were be been and or not with from as this that it its has have had will
    when than then into via per if but
""")
"""Words of every sentence: none says what a line is about."""
