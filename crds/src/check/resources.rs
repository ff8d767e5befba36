//! CPU and memory of a container.

use k8s_openapi::api::core::v1::ResourceRequirements;

use crate::problems::{FieldPath, Problems};

/// Pattern of a quantity, for the schema.
pub(crate) const QUANTITY_PATTERN: &str = "^[0-9]{1,12}(\\.[0-9]{1,9})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$";

/// Checks that each request is at most its limit: Kubernetes would refuse the pod.
pub(crate) fn check_resources(resources: &ResourceRequirements, at: &FieldPath, problems: &mut Problems) {
    for (name, request) in resources.requests.iter().flatten() {
        let Some(limit) = resources.limits.as_ref().and_then(|limits| limits.get(name)) else {
            continue;
        };
        if let (Some(asked), Some(most)) = (thousandths(&request.0), thousandths(&limit.0))
            && asked > most
        {
            let message = format!("{} is more than the limit, {}: Kubernetes would refuse the pod", request.0, limit.0);
            problems.add(&at.field("requests").field(name), message);
        }
    }
}

/// The quantity in thousandths, rounded down.
fn thousandths(quantity: &str) -> Option<u128> {
    const UNITS: [(&str, u128); 9] = [
        ("Ki", 1000 << 10),
        ("Mi", 1000 << 20),
        ("Gi", 1000 << 30),
        ("Ti", 1000 << 40),
        ("m", 1),
        ("k", 1_000_000),
        ("M", 1_000_000_000),
        ("G", 1_000_000_000_000),
        ("T", 1_000_000_000_000_000),
    ];
    let unit = UNITS.into_iter().find_map(|(unit, size)| quantity.strip_suffix(unit).map(|number| (number, size)));
    let (number, size) = unit.unwrap_or((quantity, 1000));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let billionths = format!("{fraction:0<9}");
    let number = whole.parse::<u128>().ok()?.checked_mul(1_000_000_000)? + billionths.get(..9)?.parse::<u128>().ok()?;
    Some(number.checked_mul(size)? / 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_different_units_are_compared() {
        for (small, large) in
            [("999m", "1"), ("0.5", "501m"), ("1023Mi", "1Gi"), ("1G", "1Gi"), ("1.5Gi", "1600Mi"), ("999k", "1M"), ("1T", "1Ti")]
        {
            assert!(thousandths(small) < thousandths(large), "{small} {large}");
        }
        assert_eq!(thousandths("1.5"), thousandths("1500m"));
        assert_eq!(thousandths("lots"), None);
    }
}
