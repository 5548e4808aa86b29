//! What is drained: the schema, its rows and the seeded workloads B1 to B7.
//!
//! Everything is made by SQL on the source itself, from a fixed seed, so that every run of every peer drains the same
//! changes. `scale` shrinks tables and transactions alike; figures count at 1 only.

/// Where an item's tables come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// Sections, topics and messages.
    Forum,
    /// pgbench's own tables, scale 10.
    Pgbench,
}

impl Base {
    pub const ALL: [Base; 2] = [Base::Forum, Base::Pgbench];

    pub const fn name(self) -> &'static str {
        match self {
            Base::Forum => "forum",
            Base::Pgbench => "bank",
        }
    }

    /// Tables as configured; the first ones are compared after each drain.
    pub const fn tables(self) -> &'static [&'static str] {
        match self {
            Base::Forum => &["public.sections", "public.topics", "public.messages", "public.marker"],
            Base::Pgbench => &[
                "public.pgbench_accounts",
                "public.pgbench_branches",
                "public.pgbench_tellers",
                "public.pgbench_history",
                "public.marker",
            ],
        }
    }
}

/// How an item's changes are made.
#[derive(Clone, Copy, Debug)]
pub enum Workload {
    /// One statement, given the number of units.
    Sql(fn(u64, u64) -> String),
    /// pgbench with 4 clients.
    Pgbench,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Item {
    pub name: &'static str,
    pub what: &'static str,
    pub base: Base,
    /// Transactions, or rows where there is one transaction, at scale 1.
    pub units: u64,
    pub unit: &'static str,
    pub workload: Workload,
    /// Another session holds a snapshot open at the destination meanwhile, in a further run of headwater's.
    pub old_snapshot_too: bool,
}

impl Item {
    pub fn scaled(&self, scale: f64) -> u64 {
        scaled(self.units, scale)
    }
}

/// At least 100 of anything.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "far below 2^52"
)]
pub fn scaled(units: u64, scale: f64) -> u64 {
    ((units as f64 * scale) as u64).max(100)
}

pub const MESSAGES: u64 = 2_000_000;
pub const TOPICS: u64 = 20_000;
/// pgbench's scale factor; accounts are 100,000 times that.
pub const PGBENCH_SCALE: u64 = 10;

pub const ITEMS: &[Item] = &[
    Item {
        name: "B1",
        what: "400,000 one-row INSERT transactions",
        base: Base::Forum,
        units: 400_000,
        unit: "tx",
        workload: Workload::Sql(one_row_inserts),
        old_snapshot_too: true,
    },
    Item {
        name: "B2",
        what: "one transaction of 1,000,000 inserts",
        base: Base::Forum,
        units: 1_000_000,
        unit: "rows",
        workload: Workload::Sql(many_inserts),
        old_snapshot_too: false,
    },
    Item {
        name: "B3",
        what: "400,000 one-row UPDATE transactions on random rows of 2,000,000",
        base: Base::Forum,
        units: 400_000,
        unit: "tx",
        workload: Workload::Sql(one_row_updates),
        old_snapshot_too: false,
    },
    Item {
        name: "B4",
        what: "one UPDATE of 500,000 rows",
        base: Base::Forum,
        units: 500_000,
        unit: "rows",
        workload: Workload::Sql(many_updates),
        old_snapshot_too: false,
    },
    Item {
        name: "B5",
        what: "a forum's mix, 400,000 transactions",
        base: Base::Forum,
        units: 400_000,
        unit: "tx",
        workload: Workload::Sql(forum_mix),
        old_snapshot_too: false,
    },
    Item {
        name: "B6",
        what: "400,000 transactions that update the same 20 rows",
        base: Base::Forum,
        units: 400_000,
        unit: "tx",
        workload: Workload::Sql(hot_rows),
        old_snapshot_too: false,
    },
    Item {
        name: "B7",
        what: "pgbench's TPC-B, 200,000 transactions of 4 clients at scale 10",
        base: Base::Pgbench,
        units: 200_000,
        unit: "tx",
        workload: Workload::Pgbench,
        old_snapshot_too: false,
    },
];

/// The forum's tables with their rows.
pub fn forum(topics: u64, messages: u64) -> String {
    format!(
        "CREATE TABLE public.sections (id integer PRIMARY KEY, name text NOT NULL);
         CREATE TABLE public.topics (
             id integer PRIMARY KEY, section_id integer NOT NULL REFERENCES public.sections, title text NOT NULL,
             replies integer NOT NULL DEFAULT 0, last_message_at timestamptz NOT NULL);
         CREATE TABLE public.messages (
             id bigint PRIMARY KEY, topic_id integer NOT NULL REFERENCES public.topics, author integer NOT NULL,
             body text NOT NULL, written_at timestamptz NOT NULL, edited_at timestamptz);
         CREATE TABLE public.marker (id integer PRIMARY KEY);
         INSERT INTO public.sections SELECT i, 'section ' || i FROM generate_series(1, 20) i;
         INSERT INTO public.topics SELECT i, 1 + i % 20, 'topic ' || md5(i::text), 0, '2026-01-01'
         FROM generate_series(1, {topics}) i;
         INSERT INTO public.messages
         SELECT i, 1 + hashint8(i) % {half_topics} + {half_topics}, i % 5000, repeat(md5(i::text), 5),
                timestamptz '2026-01-01' + i * interval '1 second', NULL
         FROM generate_series(1, {messages}) i;
         CREATE INDEX messages_by_topic ON public.messages (topic_id);
         ANALYZE;",
        // hashint8 may be negative: its remainder lies between -half and half.
        half_topics = topics / 2,
    )
}

fn looped(transactions: u64, body: &str) -> String {
    format!(
        "DO $$ DECLARE n int; t int; m bigint; BEGIN PERFORM setseed(0.42); FOR i IN 1..{transactions} LOOP {body} COMMIT; \
         END LOOP; END $$"
    )
}

fn one_row_inserts(transactions: u64, messages: u64) -> String {
    looped(
        transactions,
        &format!(
            "INSERT INTO public.messages VALUES ({messages} + i, 1 + floor(random() * 99)::int, i % 5000, \
             repeat(md5(i::text), 5), timestamptz '2026-06-01' + i * interval '1 second', NULL);"
        ),
    )
}

fn many_inserts(rows: u64, messages: u64) -> String {
    format!(
        "INSERT INTO public.messages SELECT {messages} + i, 1 + i % 99, i % 5000, repeat(md5(i::text), 5), \
         timestamptz '2026-06-01' + i * interval '1 second', NULL FROM generate_series(1, {rows}) i"
    )
}

fn one_row_updates(transactions: u64, messages: u64) -> String {
    looped(
        transactions,
        &format!(
            "m := 1 + floor(random() * {messages})::bigint; \
             UPDATE public.messages SET body = repeat(md5(i::text), 5), edited_at = timestamptz '2026-07-01' WHERE id = m;"
        ),
    )
}

fn many_updates(rows: u64, messages: u64) -> String {
    let step = (messages / rows).max(1);
    format!(
        "UPDATE public.messages SET body = repeat(md5(id::text || 'x'), 5), edited_at = timestamptz '2026-07-01' \
         WHERE id % {step} = 0"
    )
}

fn forum_mix(transactions: u64, messages: u64) -> String {
    looped(
        transactions,
        &format!(
            "n := floor(random() * 10)::int; m := 1 + floor(random() * {messages})::bigint;
             IF n < 7 THEN
                 t := 1 + floor(random() * 99)::int;
                 INSERT INTO public.messages VALUES ({messages} + i, t, i % 5000, repeat(md5(i::text), 5),
                     timestamptz '2026-06-01' + i * interval '1 second', NULL);
                 UPDATE public.topics SET replies = replies + 1,
                     last_message_at = timestamptz '2026-06-01' + i * interval '1 second' WHERE id = t;
             ELSIF n < 9 THEN
                 UPDATE public.messages SET body = repeat(md5(i::text), 5), edited_at = timestamptz '2026-07-01'
                 WHERE id = (SELECT id FROM public.messages WHERE id >= m
                             ORDER BY id LIMIT 1);
             ELSE
                 DELETE FROM public.messages
                 WHERE id = (SELECT id FROM public.messages WHERE id >= m
                             ORDER BY id LIMIT 1);
             END IF;"
        ),
    )
}

fn hot_rows(transactions: u64, _: u64) -> String {
    looped(
        transactions,
        "UPDATE public.topics SET replies = replies + 1, \
         last_message_at = timestamptz '2026-06-01' + i * interval '1 second' WHERE id = 1 + i % 20;",
    )
}
