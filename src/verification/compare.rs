//! The passes of a comparison, under the two snapshots of a fence.
//!
//! Sums of everything first: where they agree, which is nearly always, each table was read once. Only tables that
//! differ are read again: large ones by buckets, then for the hashes of the rows that are left, then for the keys behind those that
//! differ.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::left_out::{LeftOut, why};
use super::parts::Parts;
use super::tables::{Compared, all_parts, connect, key_parts, read_tables};
use super::workers::{CompareTask, Side, SideSessions, TableAnswer, Workers, session};
use crate::catalog::lock_budget;
use crate::comparison::{
    BUCKETS, Differences, HashedRow, Key, ListedBuckets, Net, Sum, differences, differing_buckets, listed_buckets,
    page_ranges, sql,
};
use crate::destination::{STATEMENT_MAX, Writes};
use crate::error_policy::Fault;
use crate::pg::{ErrorReport, Ident, Lsn, QualifiedName};
use crate::session::{SqlClient, read_lock_table};
use crate::verification::fence::{Fence, sql_for};
use crate::verification::fence_request::{FENCES_MAX, Maker, VerifyContext};
use crate::verification::verdict::{TableVerdict, Verdict};

/// What one statement reads at most: long enough to be worth a round trip, short enough to show progress and to lock
/// a table only for a moment.
const RANGE_BYTES: u64 = 32 << 20;
const RANGE_BYTES_MIN: u64 = 1 << 20;
/// Keys in one statement.
const KEYS_MAX: usize = 1000;

/// Keys to repair, by table.
pub(crate) type Keys = Vec<(QualifiedName, Vec<Key>)>;

/// Compares these tables, or those that were asked for, at a fence; at another one, those that were truncated or rewritten meanwhile.
pub(crate) async fn compare(
    ends: VerifyContext<'_>,
    mut maker: Maker<'_>,
    mut names: Option<Vec<QualifiedName>>,
) -> Result<(Verdict, Keys), Fault> {
    let (source, destination) = connect(ends).await?;
    let mut servers = Servers { ends, source, destination, left_out: Vec::new() };
    let mut verdict: Option<Verdict> = None;
    for _ in 0..FENCES_MAX {
        let tables = servers.tables(names.as_deref()).await?;
        if tables.is_empty() && verdict.is_none() {
            return Err(nothing_to_compare(&servers.left_out));
        }
        let round = servers.compare(&mut maker, tables).await?;
        let verdict = verdict.get_or_insert_with(|| Verdict {
            consistent_point: round.consistent_point,
            destination_position: round.destination_position,
            at_fence: round.at_fence,
            tables: Vec::new(),
            left_out: Vec::new(),
            repaired: None,
            took: std::time::Duration::ZERO,
        });
        verdict.tables.extend(round.compared);
        if round.again.is_empty() {
            if verdict.tables.is_empty() {
                return Err(nothing_to_compare(&servers.left_out));
            }
            verdict.left_out = servers.left_out;
            let keys =
                verdict.tables.iter().map(|table| (table.table.clone(), table.differences.keys().cloned().collect()));
            let keys: Keys = keys.filter(|(_, keys): &(_, Vec<Key>)| !keys.is_empty()).collect();
            return Ok((verdict.clone(), keys));
        }
        names = Some(round.again);
    }
    let names: Vec<String> = names.unwrap_or_default().iter().map(ToString::to_string).collect();
    Err(Fault::Refused(
        ErrorReport::new(format!(
            "table {} was truncated, rewritten or dropped at each of {FENCES_MAX} attempts",
            names.join(", ")
        ))
        .hint("Verify the others by --table, and these when they stay what they are for a while."),
    ))
}

/// Both servers, while fences come and go.
struct Servers<'a> {
    ends: VerifyContext<'a>,
    source: SqlClient,
    destination: SqlClient,
    /// Tables that are not compared.
    left_out: Vec<LeftOut>,
}

/// What was compared at one fence.
struct Round {
    consistent_point: Lsn,
    destination_position: Lsn,
    at_fence: bool,
    compared: Vec<TableVerdict>,
    /// Tables that were truncated, rewritten or dropped meanwhile.
    again: Vec<QualifiedName>,
}

impl Servers<'_> {
    /// The tables to compare, whose types run no code of others.
    async fn tables(&mut self, names: Option<&[QualifiedName]>) -> Result<Vec<Compared>, Fault> {
        let (tables, without) = read_tables(self.ends, &self.source, &self.destination, names).await?;
        self.left_out.extend(without);
        let compared = Writes {
            tables: tables.iter().map(|table| table.name.clone()).collect(),
            trusted_roles: self.ends.config.destination.trusted_roles.clone(),
            names_owners: self.ends.config.destination.names_owners(),
            ..Writes::default()
        };
        compared.refuse_code_of_types(&self.destination).await?;
        Ok(tables)
    }

    /// Compares tables at one fence.
    async fn compare(&mut self, maker: &mut Maker<'_>, mut tables: Vec<Compared>) -> Result<Round, Fault> {
        let mut there = all_parts(&self.source, Side::Source, &tables).await?;
        let mut here = all_parts(&self.destination, Side::Destination, &tables).await?;
        let (fence, at_fence) = maker.make(self.ends).await?;
        // In the very state that is compared: a table may have been suspended on the way to the fence.
        let why = |table: &Compared| why(&table.name, Some(table.source.relation_id()), &fence.destination.tables);
        let without: Vec<Option<LeftOut>> = tables.iter().map(why).collect();
        let stays: Vec<bool> = without.iter().map(Option::is_none).collect();
        retain(&mut tables, &stays);
        retain(&mut there, &stays);
        retain(&mut here, &stays);
        self.left_out.extend(without.into_iter().flatten());
        let (consistent_point, destination_position) =
            (fence.consistent_point, fence.destination.position.unwrap_or(Lsn::INVALID));
        let mut sessions = self.ends.options.workers.unwrap_or_else(default_workers).max(1);
        for (side, client, parts) in
            [(Side::Source, &self.source, &there), (Side::Destination, &self.destination, &here)]
        {
            sessions = sessions.min(sessions_with_room(client, side, &tables, parts, sessions).await?);
        }
        let comparison =
            FenceComparison { ends: self.ends, fence: &fence, tables: &tables, there: &there, here: &here, sessions };
        let seen = comparison.run().await?;
        if !fence.is_held() {
            return Err(Fault::Refused(ErrorReport::new(
                "a snapshot of the fence was lost while tables were compared",
            )));
        }
        drop(fence);
        let there_now = all_parts(&self.source, Side::Source, &tables).await?;
        let here_now = all_parts(&self.destination, Side::Destination, &tables).await?;
        let (mut compared, mut again) = (Vec::new(), Vec::new());
        for (at, (table, seen)) in tables.into_iter().zip(seen).enumerate() {
            let files = |parts: &[Option<Parts>]| parts.get(at).cloned().flatten().map(|parts| parts.files);
            let same = files(&there) == files(&there_now) && files(&here) == files(&here_now);
            match seen {
                ComparedTable::Compared(result) if same => compared.push(*result),
                // Nothing in between explains it: the servers were asked two different questions.
                ComparedTable::Contradicted if same => return Err(misread()),
                ComparedTable::Compared(_) | ComparedTable::Contradicted | ComparedTable::Gone => {
                    again.push(table.name)
                }
            }
        }
        Ok(Round { consistent_point, destination_position, at_fence, compared, again })
    }
}

/// None of the tables that were asked for has its changes here.
fn nothing_to_compare(left_out: &[LeftOut]) -> Fault {
    let tables: Vec<String> = left_out.iter().map(ToString::to_string).collect();
    Fault::Refused(
        ErrorReport::new(format!("nothing can be compared: {}", tables.join("; ")))
            .hint("Verify again when it is done: headwater status tells how far it is."),
    )
}

fn retain<T>(values: &mut Vec<T>, stays: &[bool]) {
    let mut stays = stays.iter();
    values.retain(|_| stays.next() == Some(&true));
}

/// What came of one table.
enum ComparedTable {
    /// A verdict, if the table has the same files afterwards.
    Compared(Box<TableVerdict>),
    /// Its sums differ and no row does: it was another table on the second look, as after a TRUNCATE.
    Contradicted,
    /// It does not exist any more on a side.
    Gone,
}

struct FenceComparison<'a> {
    ends: VerifyContext<'a>,
    fence: &'a Fence,
    tables: &'a [Compared],
    there: &'a [Option<Parts>],
    here: &'a [Option<Parts>],
    /// Sessions of each side.
    sessions: usize,
}

fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(4)
}

/// How many sessions may compare these tables at the same time without taking locks that others need.
async fn sessions_with_room(
    client: &SqlClient,
    side: Side,
    tables: &[Compared],
    parts: &[Option<Parts>],
    wanted: usize,
) -> Result<usize, Fault> {
    let whole_tree =
        |parts: &Option<Parts>| parts.as_ref().is_some_and(|parts| parts.parts.iter().any(|part| part.whole_tree));
    let needs = tables
        .iter()
        .zip(parts)
        .map(|(table, parts)| (lock_budget::of_comparing(table.definition(side), whole_tree(parts)), &table.name));
    let Some((each, largest)) = needs.max_by_key(|(need, _)| *need) else { return Ok(wanted) };
    let room = read_lock_table(client).await.map_err(|error| side.fault(error))?;
    let end = match side {
        Side::Source => "source",
        Side::Destination => "destination",
    };
    let doing = format!("comparing table {largest}");
    lock_budget::comparing_sessions(&room, end, &doing, wanted, each).map_err(Fault::Refused)
}

impl FenceComparison<'_> {
    /// What came of each table.
    async fn run(&self) -> Result<Vec<ComparedTable>, Fault> {
        let workers = self.workers();
        let all: Vec<usize> = (0..self.tables.len()).filter(|at| self.exists(*at)).collect();
        let (sums, doubts) = self.sums(&workers, &all).await?;
        let sum = |at: usize, side: Side| sums.get(&(at, side)).copied().unwrap_or_default();
        let differ: Vec<(usize, u64)> = all
            .iter()
            .map(|at| (*at, sum(*at, Side::Source), sum(*at, Side::Destination)))
            .filter(|(_, there, here)| there != here)
            .map(|(at, there, here)| (at, there.rows.max(here.rows)))
            .collect();
        let mut found = self.differences(&workers, &differ).await?;
        let mut verdicts = Vec::new();
        for (at, table) in self.tables.iter().enumerate() {
            if !self.exists(at) {
                verdicts.push(ComparedTable::Gone);
                continue;
            }
            let differences = found.remove(&at).unwrap_or_default();
            if differences.is_empty() && differ.iter().any(|(differs, _)| *differs == at) {
                verdicts.push(ComparedTable::Contradicted);
                continue;
            }
            let columns = if self.ends.options.columns && !differences.differing.is_empty() {
                self.differing_columns(table, &differences.differing).await?
            } else {
                Vec::new()
            };
            verdicts.push(ComparedTable::Compared(Box::new(TableVerdict {
                table: table.name.clone(),
                source_rows: sum(at, Side::Source).rows,
                destination_rows: sum(at, Side::Destination).rows,
                differences,
                key: table.key_names(),
                columns,
                not_compared: table.not_compared.clone(),
                inexact: table.inexact(|side| doubts.get(&(at, side)).map(Vec::as_slice).unwrap_or_default()),
                generated: table.generated(),
            })));
        }
        Ok(verdicts)
    }

    fn workers(&self) -> Workers {
        let reading = |side: Side| match side {
            Side::Source => SideSessions {
                sql: sql_for(&self.ends.addresses.source, "verifying"),
                snapshot_name: self.fence.source.snapshot_name.clone(),
                lock_timeout: self.ends.config.fence_timeout,
            },
            Side::Destination => SideSessions {
                sql: sql_for(&self.ends.addresses.destination, "verifying"),
                snapshot_name: self.fence.destination.snapshot_name.clone(),
                lock_timeout: self.ends.config.fence_timeout,
            },
        };
        Workers {
            source: reading(Side::Source),
            destination: reading(Side::Destination),
            count: self.sessions,
            max_rate: self.ends.options.max_rate,
            progress: Arc::clone(self.ends.progress),
        }
    }

    fn parts(&self, at: usize, side: Side) -> Option<&Parts> {
        let parts = match side {
            Side::Source => self.there,
            Side::Destination => self.here,
        };
        parts.get(at).and_then(Option::as_ref)
    }

    fn exists(&self, at: usize) -> bool {
        self.parts(at, Side::Source).is_some() && self.parts(at, Side::Destination).is_some()
    }

    /// One task for each range of pages of these tables, on both sides.
    fn tasks(
        &self,
        tables: &[usize],
        statement: impl Fn(usize, Side, &Compared, &sql::Part<'_>) -> String,
    ) -> Vec<CompareTask> {
        let range_bytes = match self.ends.options.max_rate {
            Some(rate) => RANGE_BYTES.min(rate.max(RANGE_BYTES_MIN)),
            None => RANGE_BYTES,
        };
        let mut tasks = Vec::new();
        for at in tables {
            let Some(table) = self.tables.get(*at) else { continue };
            for side in [Side::Source, Side::Destination] {
                for part in self.parts(*at, side).into_iter().flat_map(|parts| &parts.parts) {
                    let page_bytes = part.bytes.checked_div(part.pages).unwrap_or(8192).max(8192);
                    let ranges = page_ranges(part.pages, range_bytes / page_bytes);
                    let bytes = part.bytes / u64::try_from(ranges.len()).unwrap_or(1).max(1);
                    for pages in ranges {
                        let part = sql::Part {
                            table: &part.name,
                            whole_tree: part.whole_tree,
                            row_filter: table.row_filter(side),
                            pages,
                        };
                        tasks.push(CompareTask { side, table: *at, sql: statement(*at, side, table, &part), bytes });
                    }
                }
            }
        }
        self.ends.progress.expect(tasks.iter().map(|task| task.bytes).sum());
        tasks
    }

    /// The sums of each table and side, and how many values of its doubtful columns are not what their text says.
    async fn sums(
        &self,
        workers: &Workers,
        tables: &[usize],
    ) -> Result<(BTreeMap<(usize, Side), Sum>, BTreeMap<(usize, Side), Vec<u64>>), Fault> {
        let tasks = self.tasks(tables, |_, side, table, part| sql::sums(part, table.hashing(side)));
        let mut sums: BTreeMap<(usize, Side), Sum> = BTreeMap::new();
        let mut doubts: BTreeMap<(usize, Side), Vec<u64>> = BTreeMap::new();
        workers
            .run(tasks, |TableAnswer { table, side, rows: answer }| {
                for row in answer {
                    let sum = Sum::parse(field(&row, 0), field(&row, 1)).ok_or_else(misread)?;
                    sums.entry((table, side)).or_default().add(sum);
                    let columns = row.len().saturating_sub(2);
                    let counts = doubts.entry((table, side)).or_insert_with(|| vec![0; columns]);
                    for (count, at) in counts.iter_mut().zip(2..) {
                        *count += field(&row, at).parse::<u64>().map_err(|_| misread())?;
                    }
                }
                Ok(())
            })
            .await?;
        Ok((sums, doubts))
    }

    /// How each of these tables differs, which have so many rows.
    async fn differences(
        &self,
        workers: &Workers,
        tables: &[(usize, u64)],
    ) -> Result<BTreeMap<usize, Differences>, Fault> {
        if tables.is_empty() {
            return Ok(BTreeMap::new());
        }
        let bounds = self.ends.options.bounds;
        let large: Vec<usize> =
            tables.iter().filter(|(_, rows)| *rows > bounds.hashes_max).map(|(at, _)| *at).collect();
        let listed = self.buckets(workers, &large).await?;
        let all: Vec<usize> = tables.iter().map(|(at, _)| *at).collect();
        let nets = self.nets(workers, &all, &listed).await?;
        let mut found: BTreeMap<usize, Differences> = BTreeMap::new();
        let mut wanted: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
        for (at, net) in nets {
            let mut differences = Differences::default();
            if self.tables.get(at).is_some_and(|table| table.key.is_empty()) {
                differences = net.without_key();
            } else {
                let (keys, more) = net.differing(bounds.keys_max);
                differences.more = more;
                wanted.insert(at, keys);
            }
            differences.more |= listed.get(&at).is_some_and(|listed| listed.more);
            found.insert(at, differences);
        }
        for (at, listed) in self.keys(workers, &wanted).await? {
            let more = found.get(&at).is_some_and(|differences| differences.more);
            found.insert(at, Differences { more, ..listed });
        }
        Ok(found)
    }

    /// The buckets that differ of each of these tables, as many as are read row by row.
    async fn buckets(&self, workers: &Workers, tables: &[usize]) -> Result<BTreeMap<usize, ListedBuckets>, Fault> {
        let tasks = self.tasks(tables, |_, side, table, part| sql::bucket_sums(part, table.hashing(side), BUCKETS));
        let mut buckets: BTreeMap<(usize, Side), BTreeMap<u64, Sum>> = BTreeMap::new();
        workers
            .run(tasks, |TableAnswer { table, side, rows: answer }| {
                for row in answer {
                    let bucket: u64 = field(&row, 0).parse().map_err(|_| misread())?;
                    let sum = Sum::parse(field(&row, 1), field(&row, 2)).ok_or_else(misread)?;
                    buckets.entry((table, side)).or_default().entry(bucket).or_default().add(sum);
                }
                Ok(())
            })
            .await?;
        let mut of = |at, side| buckets.remove(&(at, side)).unwrap_or_default();
        let listed = |at: &usize| {
            let differing = differing_buckets(&of(*at, Side::Source), &of(*at, Side::Destination));
            (*at, listed_buckets(&differing, self.ends.options.bounds.hashes_max))
        };
        Ok(tables.iter().map(listed).collect())
    }

    /// The rows that one side has and the other has not, of the buckets that are listed, or of whole tables.
    async fn nets(
        &self,
        workers: &Workers,
        tables: &[usize],
        listed: &BTreeMap<usize, ListedBuckets>,
    ) -> Result<BTreeMap<usize, Net>, Fault> {
        let tasks = self.tasks(tables, |at, side, table, part| {
            let buckets = listed.get(&at).map(|listed| sql::WantedBuckets { count: BUCKETS, numbers: &listed.numbers });
            sql::hashes(part, table.hashing(side), buckets)
        });
        let mut nets: BTreeMap<usize, Net> = tables.iter().map(|at| (*at, Net::default())).collect();
        workers
            .run(tasks, |TableAnswer { table, side, rows: answer }| {
                let net = nets.entry(table).or_default();
                for row in answer {
                    let key: i64 = field(&row, 0).parse().map_err(|_| misread())?;
                    let hash: i64 = field(&row, 1).parse().map_err(|_| misread())?;
                    match side {
                        Side::Source => net.at_source(key, hash),
                        Side::Destination => net.at_destination(key, hash),
                    }
                }
                Ok(())
            })
            .await?;
        Ok(nets)
    }

    /// The keys behind these hashes, matched.
    async fn keys(
        &self,
        workers: &Workers,
        wanted: &BTreeMap<usize, Vec<i64>>,
    ) -> Result<BTreeMap<usize, Differences>, Fault> {
        let tables: Vec<usize> = wanted.keys().copied().collect();
        let tasks = self.tasks(&tables, |at, side, table, part| {
            sql::keys(part, table.hashing(side), wanted.get(&at).map(Vec::as_slice).unwrap_or_default())
        });
        let mut rows: BTreeMap<(usize, Side), Vec<HashedRow>> = BTreeMap::new();
        workers
            .run(tasks, |TableAnswer { table, side, rows: answer }| {
                for row in answer {
                    let hash: i64 = field(&row, 0).parse().map_err(|_| misread())?;
                    let key = row.into_iter().skip(1).map(Option::unwrap_or_default).collect();
                    rows.entry((table, side)).or_default().push(HashedRow { key, hash });
                }
                Ok(())
            })
            .await?;
        let mut of = |at, side| rows.remove(&(at, side)).unwrap_or_default();
        Ok(tables.iter().map(|at| (*at, differences(of(*at, Side::Source), of(*at, Side::Destination)))).collect())
    }

    /// Which columns differ in the rows with these keys.
    async fn differing_columns(&self, table: &Compared, keys: &[Key]) -> Result<Vec<(Key, Vec<Ident>)>, Fault> {
        let source = self.under_snapshot(Side::Source).await?;
        let destination = self.under_snapshot(Side::Destination).await?;
        // Rows are found through the root, which locks all partitions: that the rows differ is worth more than which columns do.
        for (client, side, end) in [(&source, Side::Source, "source"), (&destination, Side::Destination, "destination")]
        {
            let room = read_lock_table(client).await.map_err(|error| side.fault(error))?;
            let each = lock_budget::of_comparing(table.definition(side), true);
            let doing = format!("finding the columns of table {} that differ", table.name);
            if let Err(report) = lock_budget::comparing_sessions(&room, end, &doing, 1, each) {
                tracing::warn!("{}", report.lines());
                return Ok(Vec::new());
            }
        }
        let mut found = Vec::new();
        for keys in keys.chunks(KEYS_MAX) {
            let there = hashes(&source, Side::Source, table, keys).await?;
            let here = hashes(&destination, Side::Destination, table, keys).await?;
            for (at, key) in keys.iter().enumerate() {
                let (Some(there), Some(here)) = (there.get(&at), here.get(&at)) else { continue };
                let columns = table.hashing(Side::Source).columns.iter().zip(there.iter().zip(here));
                let differ = columns.filter(|(_, (there, here))| there != here);
                let differ = differ.map(|(column, _)| column.name.clone());
                found.push((key.clone(), differ.collect()));
            }
        }
        Ok(found)
    }

    async fn under_snapshot(&self, side: Side) -> Result<SqlClient, Fault> {
        let (address, snapshot_name) = match side {
            Side::Source => (&self.ends.addresses.source, &self.fence.source.snapshot_name),
            Side::Destination => (&self.ends.addresses.destination, &self.fence.destination.snapshot_name),
        };
        let fault = |error| side.fault(error);
        let client = session(&sql_for(address, "verifying"), self.ends.config.fence_timeout).await.map_err(fault)?;
        let client = client.with_timeout(STATEMENT_MAX);
        client.import_snapshot(snapshot_name).await.map_err(fault)?;
        Ok(client)
    }
}

/// For each key that has a row, by its place: the hash of each column.
async fn hashes(
    client: &SqlClient,
    side: Side,
    table: &Compared,
    keys: &[Key],
) -> Result<BTreeMap<usize, Vec<i64>>, Fault> {
    let key = key_parts(client, side, table).await?;
    let definition = table.definition(side);
    let statement = sql::column_hashes(&definition.name(), definition.is_tree(), &key, table.hashing(side));
    let json = serde_json::to_string(keys).expect("texts can be written as JSON");
    let rows = client.query("comparing columns", &statement, &[&json]).await;
    let read = rows.and_then(|rows| {
        rows.iter().map(|row| Ok((row.get::<i64>(0)?, row.get::<Vec<i64>>(1)?))).collect::<Result<Vec<_>, _>>()
    });
    let read = read.map_err(|error| side.fault(error))?.into_iter();
    let placed = read.map(|(number, hashes)| {
        let index = number.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        Ok((index.ok_or_else(misread)?, hashes))
    });
    placed.collect()
}

fn field(row: &[Option<String>], at: usize) -> &str {
    row.get(at).and_then(Option::as_deref).unwrap_or_default()
}

fn misread() -> Fault {
    Fault::Refused(ErrorReport::new("the servers' answers to a comparison do not fit together"))
}
