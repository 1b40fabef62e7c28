"""What happens to the wires between a worker and its databases. See proxy.py for what each means."""

from lanes import Faults

# How long a worker may keep a connection whose other end is gone before that is a defect.
NOTICE_SECONDS = 150


class NetworkFaults(Faults):
    GAP = (4, 12)

    def __init__(self, pipeline, journal, controls):
        super().__init__(pipeline.name, journal, controls)
        self.pipeline = pipeline

    def wire(self, draw):
        name = draw.choice(["source", "target"])
        return self.pipeline.proxies[name], f"{self.where}'s {name}"

    def cut(self, draw):
        proxy, where = self.wire(draw)
        reset = draw.random() < 0.7
        self.injected("connections cut", f"{proxy.cut(reset)} at once, {'reset' if reset else 'closed'}", where)

    def cut_again_and_again(self, draw):
        proxy, where = self.wire(draw)
        times, pause = draw.randint(4, 15), draw.uniform(0.1, 2)
        self.injected("connections cut again and again", f"{times} times, {pause:.1f} s between", where)
        for _ in range(times):
            proxy.cut()
            self.rest(pause)

    def tear(self, draw):
        proxy, where = self.wire(draw)
        after = draw.choice([1, draw.randint(2, 200), draw.randint(200, 60_000)])
        self.injected("connections torn inside a message", f"after {after} bytes, {proxy.tear(after)} connections", where)

    def mute(self, draw):
        """Statements arrive, among them COMMIT, and their answers do not; then the connection ends."""
        proxy, where = self.wire(draw)
        count, seconds = proxy.mute(), draw.uniform(0.2, 4)
        self.injected("answers swallowed, then cut", f"{count} connections for {seconds:.1f} s", where)
        self.rest(seconds)
        proxy.cut()

    def refuse(self, draw):
        proxy, where = self.wire(draw)
        seconds = draw.uniform(1, 20)
        self.injected("connections refused", f"for {seconds:.1f} s", where)
        proxy.refuse()
        self.rest(seconds)
        proxy.heal()

    def half_open(self, draw):
        proxy, where = self.wire(draw)
        self.injected("connections half open", f"{proxy.half_open()}", where)

    def stall(self, draw):
        proxy, where = self.wire(draw)
        seconds = draw.choice([draw.uniform(1, 8), draw.uniform(8, 40)])
        self.injected("connections stalled", f"for {seconds:.1f} s", where)
        proxy.stall()
        self.rest(seconds)
        proxy.heal()

    def delay(self, draw):
        proxy, where = self.wire(draw)
        delay, seconds = draw.uniform(0.005, 0.25), draw.uniform(5, 20)
        self.injected("connections delayed", f"by {delay * 1000:.0f} ms for {seconds:.1f} s", where)
        proxy.slow(delay_seconds=delay)
        self.rest(seconds)
        proxy.heal()

    def throttle(self, draw):
        proxy, where = self.wire(draw)
        rate, seconds = draw.randint(20_000, 400_000), draw.uniform(5, 20)
        self.injected("connections throttled", f"to {rate / 1000:.0f} kB/s for {seconds:.1f} s", where)
        proxy.slow(bytes_per_second=rate)
        self.rest(seconds)
        proxy.heal()

    def heal(self):
        for proxy in self.pipeline.proxies.values():
            proxy.heal()

    KINDS = {cut: 8, cut_again_and_again: 3, tear: 6, mute: 5, refuse: 4, half_open: 3, stall: 5, delay: 4, throttle: 4}
