use proptest::prelude::*;

use super::*;

fn any_what() -> impl Strategy<Value = What> {
    let word = "[!-~é]{1,40}";
    prop_oneof![
        Just(What::Everything),
        word.prop_map(|word| What::policy(&word).unwrap()),
        word.prop_map(|word| What::tag(&word).unwrap()),
        word.prop_map(|word| What::prefix(&word).unwrap()),
        word.prop_map(|word| What::url(&word).unwrap()),
    ]
}

fn any_position() -> impl Strategy<Value = Position> {
    (any::<u128>(), 0..=LAST_PLACE).prop_map(|(generation, at)| Position { generation: Generation(generation), at })
}

proptest! {
    #[test]
    fn what_is_written_is_read(id in any::<u128>(), hard in any::<bool>(), what in any_what(), before in proptest::option::of(any_position())) {
        let strength = if hard { Strength::Hard } else { Strength::Soft };
        for content in [Content::Purge(Entry { id: PurgeId(id), what, strength }), Content::Begin(before)] {
            prop_assert_eq!(Content::parse(&content.to_string()), content);
        }
    }

    #[test]
    fn no_line_is_read_as_less_than_it_says(line in "(1 )?[0-9a-f]{30,34} (hard|soft|mild) (everything|tag|url|prefix|policy|query)( [ -~]{0,20})?") {
        if let Content::Purge(entry) = Content::parse(&line) {
            prop_assert_eq!(entry.to_string(), line);
        }
    }

    #[test]
    fn members_are_read_as_written(pod in "[A-Za-z0-9._-]{1,63}", incarnation in any::<u64>()) {
        let id = MemberId::new(&pod, incarnation).unwrap();
        prop_assert_eq!(id.to_string().parse(), Ok(id));
    }
}

#[test]
fn lines_of_others_are_unreadable() {
    let id = "0123456789abcdef0123456789abcdef";
    for line in [
        String::new(),
        "begin 12".to_owned(),
        format!("begin {id} 9007199254740991"),
        format!("2 {id} hard everything"),
        format!("1 {id} hard everything "),
        format!("1 {id} hard everything x"),
        format!("1 {id} hard tag"),
        format!("1 {id} hard tag "),
        format!("1 {id} hard tag a b"),
        format!("1 {id} hard tag a\u{a0}b"),
        format!("1 {id} hard tag a\nb"),
        format!("1 {id} hard Tag a"),
        format!("1 {id}0 hard everything"),
        format!("1 +{} hard everything", &id[1..]),
        format!("1 {id}  hard everything"),
        format!("1 {id} hard tag {}", "x".repeat(1025)),
        format!("1 {id} hard url {}", "x".repeat(8193)),
    ] {
        assert_eq!(Content::parse(&line), Content::Unreadable, "{line:?}");
    }
}

#[test]
fn values_are_bounded_words() {
    assert_eq!(What::tag(""), Err(Malformed::Empty));
    assert_eq!(What::tag("two words"), Err(Malformed::Character));
    assert_eq!(What::tag("bell\u{7}"), Err(Malformed::Character));
    assert_eq!(What::tag(&"x".repeat(1025)), Err(Malformed::Long(1024)));
    assert_eq!(What::prefix(&"x".repeat(8193)), Err(Malformed::Long(8192)));
    assert!(What::tag(&"x".repeat(1024)).is_ok() && What::url(&"x".repeat(8192)).is_ok());
}

#[test]
fn pods_of_two_namespaces_share_nothing_although_they_have_one_proxy() {
    let default = ObjectRef::new("fetchr-system", "default");
    let web = |namespace: &str| {
        let (workload_kind, workload_name) = ("Deployment".to_owned(), "web".to_owned());
        let pod = Identity { namespace: namespace.to_owned(), workload_kind, workload_name, ..Identity::default() };
        Scope::of(&default, &pod).unwrap()
    };
    assert_eq!((web("shop").parts(), web("bank").parts()), (("shop", "Deployment/web"), ("bank", "Deployment/web")));
    let alone = Scope::of(&ObjectRef::new("shop", "web"), &Identity::default()).unwrap();
    assert_eq!(alone.parts(), ("shop", "FetchrProxy/web"));
}

#[test]
fn a_scope_stays_in_its_tenant_and_slot() {
    let scope = Scope::new("shop", "Deployment/web").unwrap();
    assert_eq!(scope.key("log"), "fetchr:shop:{purge:Deployment/web}:log");
    for evil in ["", "a:b", "{a}", "a b", "*", "a\n"] {
        assert!(Scope::new(evil, "web").is_err() && Scope::new("shop", evil).is_err(), "{evil:?}");
    }
}
