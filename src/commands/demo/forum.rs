//! A forum to copy: sections, topics and messages with believable text, and people who write in it.
//!
//! Filled once at the start of the demo. Then [`ForumWriter`] continues with a few transactions at a time: mostly new messages, some edits
//! and deletes, now and then a topic that moves or a section that gets another name.

use fastrand::Rng;

use crate::pg::quote_literal;
use crate::session::{SessionError, SqlClient};

const SECTIONS: i64 = 20;
const TOPICS: i64 = 2_000;
const MESSAGES: i64 = 200_000;
/// Rows per INSERT while filling.
const ROWS_PER_STATEMENT: i64 = 4_000;

const SCHEMA: &str = "
    CREATE TABLE public.sections (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE,
        place integer NOT NULL);
    CREATE TABLE public.topics (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        section_id integer NOT NULL REFERENCES public.sections ON DELETE CASCADE,
        title varchar(200) NOT NULL CHECK (length(title) > 0),
        messages integer NOT NULL DEFAULT 0,
        last_message_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE public.messages (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        topic_id integer NOT NULL REFERENCES public.topics ON DELETE CASCADE,
        author text NOT NULL,
        body text NOT NULL,
        written_at timestamptz NOT NULL DEFAULT now(),
        edited_at timestamptz);
    CREATE INDEX topics_by_section ON public.topics (section_id, last_message_at DESC);
    CREATE INDEX messages_by_topic ON public.messages (topic_id);";

const SECTION_NAMES: [&str; 20] = [
    "Announcements",
    "Introductions",
    "Hiking and trails",
    "River crossings",
    "Maps and navigation",
    "Weather",
    "Boots and socks",
    "Tents and tarps",
    "Stoves and fuel",
    "Cooking outdoors",
    "Water",
    "First aid",
    "Photography",
    "Winter trips",
    "Travel reports",
    "Second hand",
    "Looking for company",
    "Huts and refuges",
    "Off topic",
    "About this forum",
];

const AUTHORS: [&str; 16] = [
    "marta",
    "jonas",
    "aiko",
    "old_goat",
    "lena.k",
    "trailhead",
    "beckett",
    "ines",
    "pavel",
    "rainproof",
    "sunniva",
    "tom_two_maps",
    "yusuf",
    "quietpath",
    "doro",
    "ferrywoman",
];

const OPENINGS: [&str; 12] = [
    "We left before dawn",
    "I have tried both",
    "Has anybody been up there lately",
    "Short answer: yes",
    "That depends on the season",
    "Last weekend we turned back",
    "For what it is worth",
    "I second that",
    "Be careful with this one",
    "Thank you for the report",
    "It took us longer than the sign says",
    "After three seasons of use",
];

const MIDDLES: [&str; 14] = [
    "because the ford above the mill was knee deep",
    "and the path behind the ridge is overgrown",
    "so bring more water than you think you need",
    "while the lower hut is closed until June",
    "although my boots were dry again by noon",
    "and the map still shows the old bridge",
    "but the north side keeps its snow well into May",
    "with a light pack and an early start",
    "since the spring at the saddle runs only after rain",
    "and nobody else was there all day",
    "although the wind made the tarp useless",
    "because the last bus leaves at four",
    "so we camped under the larches instead",
    "and the view made up for all of it",
];

const ENDINGS: [&str; 10] = [
    "Would go again.",
    "Not with children, though.",
    "Photos follow.",
    "Ask me if you want the track.",
    "Your mileage may vary.",
    "Correct me if that has changed.",
    "See you out there.",
    "I will report back in autumn.",
    "Take the left fork.",
    "Enjoy!",
];

const SUBJECTS: [&str; 12] = [
    "the upper valley loop",
    "the long traverse",
    "lightweight stoves",
    "the new topo sheets",
    "wet feet",
    "the lake circuit",
    "a three-day tour",
    "the ferry timetable",
    "wool or synthetic",
    "the winter route",
    "the closed footbridge",
    "dogs on the trail",
];

const TITLES: [&str; 8] = [
    "Conditions on {}?",
    "Report: {}",
    "Question about {}",
    "{} in October",
    "Advice wanted: {}",
    "Anyone for {}?",
    "{} revisited",
    "Warning: {}",
];

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from.get(rng.usize(..from.len())).copied().unwrap_or_default()
}

fn title(rng: &mut Rng) -> String {
    let title = pick(rng, &TITLES).replace("{}", pick(rng, &SUBJECTS));
    let mut chars = title.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn body(rng: &mut Rng) -> String {
    let sentences = rng.usize(1..4);
    let mut text = String::new();
    for _ in 0..sentences {
        text.push_str(&format!("{} {}. ", pick(rng, &OPENINGS), pick(rng, &MIDDLES)));
    }
    text.push_str(pick(rng, &ENDINGS));
    text
}

/// Creates the forum and fills it; `progress` hears how many messages are there.
///
/// # Errors
/// The session's.
pub(super) async fn fill(client: &SqlClient, seed: u64, mut progress: impl FnMut(i64)) -> Result<(), SessionError> {
    let doing = "filling the forum";
    let mut rng = Rng::with_seed(seed);
    client.batch(doing, SCHEMA).await?;
    let sections: Vec<String> =
        SECTION_NAMES.iter().zip(1..).map(|(name, place)| format!("({}, {place})", quote_literal(name))).collect();
    client
        .statement(doing, &format!("INSERT INTO public.sections (name, place) VALUES {}", sections.join(",")))
        .await?;
    let topics: Vec<String> =
        (0..TOPICS).map(|_| format!("({}, {})", rng.i64(1..=SECTIONS), quote_literal(&title(&mut rng)))).collect();
    client
        .statement(doing, &format!("INSERT INTO public.topics (section_id, title) VALUES {}", topics.join(",")))
        .await?;
    let mut written = 0;
    while written < MESSAGES {
        let rows: Vec<String> = (0..ROWS_PER_STATEMENT)
            .map(|_| {
                let topic = rng.i64(1..=TOPICS);
                let (author, body) = (quote_literal(pick(&mut rng, &AUTHORS)), quote_literal(&body(&mut rng)));
                format!("({topic}, {author}, {body}, now() - {} * interval '1 minute')", rng.i64(1..500_000))
            })
            .collect();
        let sql = format!("INSERT INTO public.messages (topic_id, author, body, written_at) VALUES {}", rows.join(","));
        client.statement(doing, &sql).await?;
        written += ROWS_PER_STATEMENT;
        progress(written);
    }
    client
        .batch(
            doing,
            "UPDATE public.topics t SET messages = c.n, last_message_at = c.last
             FROM (SELECT topic_id, count(*) AS n, max(written_at) AS last FROM public.messages GROUP BY 1) c
             WHERE c.topic_id = t.id",
        )
        .await?;
    client.batch(doing, "ANALYZE").await
}

/// Somebody who writes in the forum.
pub(super) struct ForumWriter {
    client: SqlClient,
    rng: Rng,
}

impl ForumWriter {
    pub(super) fn new(client: SqlClient, seed: u64) -> ForumWriter {
        ForumWriter { client, rng: Rng::with_seed(seed) }
    }

    /// One transaction.
    ///
    /// # Errors
    /// The session's.
    pub(super) async fn write(&mut self) -> Result<(), SessionError> {
        let rng = &mut self.rng;
        let topic = rng.i64(1..=TOPICS);
        let message = rng.i64(1..=MESSAGES);
        let statements = match rng.u32(..1000) {
            0..700 => {
                let (author, body) = (quote_literal(pick(rng, &AUTHORS)), quote_literal(&body(rng)));
                vec![
                    format!(
                        "INSERT INTO public.messages (topic_id, author, body)
                         SELECT id, {author}, {body} FROM public.topics WHERE id = {topic}"
                    ),
                    format!(
                        "UPDATE public.topics SET messages = messages + 1, last_message_at = now() WHERE id = {topic}"
                    ),
                ]
            }
            700..880 => {
                let text = quote_literal(&format!("{}\n\nEdit: {}", body(rng), pick(rng, &ENDINGS)));
                vec![format!("UPDATE public.messages SET body = {text}, edited_at = now() WHERE id = {message}")]
            }
            880..970 => vec![
                format!(
                    "UPDATE public.topics SET messages = messages - 1
                     WHERE id = (SELECT topic_id FROM public.messages WHERE id = {message})"
                ),
                format!("DELETE FROM public.messages WHERE id = {message}"),
            ],
            970..990 => {
                vec![format!("UPDATE public.topics SET section_id = {} WHERE id = {topic}", rng.i64(1..=SECTIONS))]
            }
            990..997 => {
                vec![format!("UPDATE public.topics SET title = {} WHERE id = {topic}", quote_literal(&title(rng)))]
            }
            _ => {
                let place = rng.usize(..SECTION_NAMES.len());
                let name = SECTION_NAMES.get(place).copied().unwrap_or_default();
                let name = quote_literal(&format!("{name} ({})", rng.u32(2..100)));
                vec![format!("UPDATE public.sections SET name = {name} WHERE place = {}", place + 1)]
            }
        };
        let doing = "writing in the forum";
        self.client.batch(doing, "BEGIN").await?;
        self.client.statements(doing, &statements).await?;
        self.client.batch(doing, "COMMIT").await
    }
}
