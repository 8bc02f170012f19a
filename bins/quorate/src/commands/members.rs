//! The gossip pool: `members`, `join`, `force-leave`.

use super::{Context, misused};
use crate::report::Report;
use crate::table::{aligned, row};
use quorate_api_client::Member;

fn tag<'a>(member: &'a Member, name: &str) -> &'a str {
    member.tags.get(name).map_or("", String::as_str)
}

fn segment(member: &Member) -> &str {
    match tag(member, "segment") {
        _ if member.is_server() => "<all>",
        "" => "<default>",
        segment => segment,
    }
}

/// `ip:port`, with brackets where IPv6 needs them.
fn address(member: &Member) -> String {
    if member.addr.contains(':') {
        format!("[{}]:{}", member.addr, member.port)
    } else {
        format!("{}:{}", member.addr, member.port)
    }
}

pub async fn members(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let status = if flags.is_given("status") {
        flags.text("status")
    } else {
        ".*"
    };
    let status = regex::Regex::new(status)
        .map_err(|error| format!("Failed to compile status regexp: {}", regexp_reason(&error, status)))?;
    let segment = if flags.is_given("segment") {
        flags.text("segment")
    } else {
        "_all"
    };
    let members = context
        .client()
        .await?
        .members(flags.boolean("wan"), segment, flags.text("filter"))
        .await;
    let mut members = members.map_err(|error| format!("Error retrieving members: {error}"))?;
    members.retain(|member| status.is_match(member.status_word()));
    if members.is_empty() {
        return Ok(Report {
            code: 2,
            ..Report::default()
        });
    }
    members.sort_by(|a, b| (!a.is_server(), &a.name).cmp(&(!b.is_server(), &b.name)));
    Ok(Report::text(if flags.boolean("detailed") {
        detailed(&members)
    } else {
        standard(&members)
    }))
}

/// Go's words for the mistakes that people make; ours for the rest.
pub(super) fn regexp_reason(error: &regex::Error, pattern: &str) -> String {
    // The text's last line is the reason; those before draw the pattern.
    let text = error.to_string();
    let reason = match text.lines().last().unwrap_or_default().trim_start_matches("error: ") {
        "unclosed group" => "missing closing )",
        "unopened group" => "unexpected )",
        "unclosed character class" => "missing closing ]",
        "repetition operator missing expression" => "missing argument to repetition operator",
        other => other,
    };
    format!("error parsing regexp: {reason}: `{pattern}`")
}

fn standard(members: &[Member]) -> String {
    let mut rows = vec![row([
        "Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Segment",
    ])];
    for member in members {
        let kind = match tag(member, "role") {
            "node" => "client",
            "consul" => "server",
            _ => "unknown",
        };
        // `1.8.7:revision`
        let build = tag(member, "build").split(':').next().unwrap_or_default();
        rows.push(row([
            &member.name,
            &address(member),
            member.status_word(),
            kind,
            build,
            tag(member, "vsn"),
            tag(member, "dc"),
            segment(member),
        ]));
    }
    aligned(&rows, 2)
}

fn detailed(members: &[Member]) -> String {
    let mut rows = vec![row(["Node", "Address", "Status", "Tags"])];
    for member in members {
        let mut tags = member.tags.clone();
        tags.insert("segment".to_owned(), segment(member).to_owned());
        let tags: Vec<String> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        rows.push(row([
            &member.name,
            &address(member),
            member.status_word(),
            &tags.join(","),
        ]));
    }
    aligned(&rows, 2)
}

pub async fn join(context: &Context) -> Result<Report, Report> {
    if context.arguments().is_empty() {
        return Err(misused("join", "At least one address to join must be specified."));
    }
    let client = context.client().await?;
    let mut report = Report::default();
    let mut joined = 0;
    for address in context.arguments() {
        match client.join(address, context.flags.boolean("wan")).await {
            Ok(()) => joined += 1,
            Err(error) => report.add_failure(format!("Error joining address '{address}': {error}")),
        }
    }
    if joined == 0 {
        report.add_failure("Failed to join any nodes.");
        return Err(report);
    }
    // Some were reached, and so the agent is in the pool: that is what was asked for.
    report.code = 0;
    report.add_line(format!("Successfully joined cluster by contacting {joined} nodes."));
    Ok(report)
}

pub async fn force_leave(context: &Context) -> Result<Report, Report> {
    let [name] = context.arguments() else {
        return Err(misused(
            "force-leave",
            "A single node name must be specified to force leave.",
        ));
    };
    let (prune, wan) = (context.flags.boolean("prune"), context.flags.boolean("wan"));
    let left = context.client().await?.force_leave(name, prune, wan).await;
    left.map_err(|error| format!("Error force leaving: {error}"))?;
    Ok(Report::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: &str = r#"[
        {"Name":"c1","Addr":"127.0.0.14","Port":8301,"Status":1,"Tags":{"acls":"0","build":"1.8.7:","dc":"dc1",
         "id":"ccbac0e4-91d2-6d32-31d4-6898d8eeace4","role":"node","segment":"","vsn":"2","vsn_max":"3","vsn_min":"2"}},
        {"Name":"s1","Addr":"127.0.0.11","Port":8301,"Status":1,"Tags":{"acls":"0","build":"1.8.7:","dc":"dc1","expect":"3",
         "ft_fs":"1","id":"b1860f4a-837b-c44e-07af-081fdf153009","port":"8300","raft_vsn":"3","role":"consul","segment":"",
         "vsn":"2","vsn_max":"3","vsn_min":"2","wan_join_port":"8302"}}]"#;

    fn sorted() -> Vec<Member> {
        let mut members: Vec<Member> = serde_json::from_str(MEMBERS).unwrap();
        members.reverse();
        members
    }

    #[test]
    fn members_look_as_consul_shows_them() {
        // From `consul members` of 1.8.7.
        let text = "\
Node  Address          Status  Type    Build  Protocol  DC   Segment
s1    127.0.0.11:8301  alive   server  1.8.7  2         dc1  <all>
c1    127.0.0.14:8301  alive   client  1.8.7  2         dc1  <default>
";
        assert_eq!(standard(&sorted()), text);
    }

    #[test]
    fn detailed_members_show_sorted_tags_with_the_segment_named() {
        // From `consul members -detailed` of 1.8.7.
        let text = "\
Node  Address          Status  Tags
s1    127.0.0.11:8301  alive   acls=0,build=1.8.7:,dc=dc1,expect=3,ft_fs=1,id=b1860f4a-837b-c44e-07af-081fdf153009,port=8300,raft_vsn=3,role=consul,segment=<all>,vsn=2,vsn_max=3,vsn_min=2,wan_join_port=8302
c1    127.0.0.14:8301  alive   acls=0,build=1.8.7:,dc=dc1,id=ccbac0e4-91d2-6d32-31d4-6898d8eeace4,role=node,segment=<default>,vsn=2,vsn_max=3,vsn_min=2
";
        assert_eq!(detailed(&sorted()), text);
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let json = r#"{"Name":"a","Addr":"2001:db8::4","Port":8301,"Status":4,"Tags":{}}"#;
        let member: Member = serde_json::from_str(json).unwrap();
        assert_eq!(
            (address(&member).as_str(), member.status_word()),
            ("[2001:db8::4]:8301", "failed")
        );
    }
}
