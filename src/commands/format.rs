//! Numbers as people read them: durations, sizes, counts.
//!
//! Used by what `status` and `explain` print. Pure, and alike to the status page's own.

/// `0 s`, `12 ms`, `3.2 s`, `75 s`, `3 min 20 s`, `2 h 05 min`, `3 days`.
pub(super) fn duration(seconds: f64) -> String {
    // A duration is far from the bounds of an integer, and its parts are cut on purpose.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut to whole units for people")]
    let whole = |value: f64| value.max(0.0) as u64;
    match seconds {
        s if s < 0.000_5 => "0 s".to_owned(),
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{} min {:02} s", whole(s / 60.0), whole(s % 60.0)),
        s if s < 172_800.0 => format!("{} h {:02} min", whole(s / 3600.0), whole(s % 3600.0 / 60.0)),
        s => format!("{} days", whole(s / 86_400.0)),
    }
}

/// `0 B`, `4.6 kB`, `136 MB`.
pub(super) fn size(bytes: u64) -> String {
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["kB", "MB", "GB", "TB", "PB"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = larger;
    }
    match value {
        v if v >= 100.0 => format!("{v:.0} {unit}"),
        v if v >= 10.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.2} {unit}"),
    }
}

/// `55,001`
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `55,001 rows`, `1 row`
pub(super) fn counts(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_people_read_them() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.012, "12 ms"),
            (3.21, "3.2 s"),
            (75.4, "75 s"),
            (200.0, "3 min 20 s"),
            (7500.0, "2 h 05 min"),
            (260_000.0, "3 days"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (4630, "4.63 kB"), (136_000_000, "136 MB"), (u64::MAX, "18447 PB")]
        {
            assert_eq!(size(bytes), text);
        }
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (55_001, "55,001"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }
}
