//! User events and network coordinates: fired on one agent, heard on another; told, listed and sorted by.

use crate::support::*;
use serde_json::{Value, json};

fn names(list: &Value, field: &str) -> Vec<String> {
    let names = list.as_array().into_iter().flatten();
    names
        .filter_map(|element| Some(element[field].as_str()?.to_owned()))
        .collect()
}

#[test]
fn an_event_reaches_the_agents_that_its_filters_mean() {
    let cluster = Cluster::start();
    let agents = [&cluster.servers[0], &cluster.clients[0], &cluster.clients[1]];
    let web = json!({"Name": "web", "Tags": ["v2"]});
    assert_eq!(agents[1].put("/v1/agent/service/register", &web).status, 200);

    let fired = agents[0].http("PUT", "/v1/event/fire/deploy", "v2").expect("an answer");
    assert_eq!(fired.status, 200, "{fired:?}");
    let fired: Value = serde_json::from_str(&fired.body).expect("JSON");
    assert_eq!((&fired["Payload"], &fired["LTime"]), (&json!("djI="), &json!(0)));
    for agent in &agents {
        wait_until("every agent lists the event", || {
            let events = agent.get("/v1/event/list?name=deploy").unwrap_or_default();
            events[0]["ID"] == fired["ID"] && events[0]["LTime"].as_u64().is_some_and(|ltime| ltime > 1)
        });
    }

    let end = agents[2].cli(&["event", "-name=restart", "-service=^web$", "-tag=v2", "now"]);
    assert_eq!(end.code, 0, "{end:?}");
    check_contains(&end.stdout, "Event ID: ");
    wait_until("the agent with the service lists it", || {
        names(&agents[1].get("/v1/event/list").unwrap_or_default(), "Name") == ["deploy", "restart"]
    });
    let later = agents[0].http("PUT", "/v1/event/fire/later", "").expect("an answer");
    assert_eq!(later.status, 200);
    wait_until("the agent without the service lists what came later", || {
        names(&agents[2].get("/v1/event/list").unwrap_or_default(), "Name") == ["deploy", "later"]
    });

    for (arguments, complaint) in [
        (&["event"][..], "Event name must be specified\n"),
        (
            &["event", "-name=x", "-tag=a"][..],
            "Cannot provide tag filter without service filter.\n",
        ),
    ] {
        let end = agents[0].cli(arguments);
        assert_eq!(end.code, 1);
        assert!(end.stderr.starts_with(complaint), "{end:?}");
    }
    let too_long = agents[0]
        .http("PUT", "/v1/event/fire/long", &"x".repeat(600))
        .expect("an answer");
    assert_eq!(too_long.status, 500);
    check_contains(
        &too_long.body,
        "user event exceeds configured limit of 512 bytes before encoding",
    );
}

#[test]
fn nodes_are_sorted_by_the_coordinates_they_told() {
    let mut agent = Agent::dev("s1", &[]);
    agent.wait_for_leader();
    let datacenters = agent.get("/v1/coordinate/datacenters").expect("an answer");
    assert_eq!(datacenters[0]["Coordinates"][0]["Node"], "s1");

    for (node, distance) in [("far", 0.3), ("near", 0.001), ("middle", 0.05)] {
        let body = json!({"Node": node, "Address": "10.0.0.1", "Service": {"Service": "db"}});
        assert_eq!(agent.put("/v1/catalog/register", &body).status, 200);
        let place = [distance, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let coordinate = json!({"Vec": place, "Error": 0.5, "Adjustment": 0, "Height": 0.00001});
        let told = agent.put("/v1/coordinate/update", &json!({"Node": node, "Coord": coordinate}));
        assert_eq!((told.status, told.body.as_str()), (200, ""));
    }
    let origin = json!({"Vec": [0, 0, 0, 0, 0, 0, 0, 0], "Error": 0.5, "Adjustment": 0, "Height": 0.00001});
    agent.put("/v1/coordinate/update", &json!({"Node": "s1", "Coord": origin}));
    wait_until("the batch is written", || {
        names(&agent.get("/v1/coordinate/nodes").unwrap_or_default(), "Node") == ["far", "middle", "near", "s1"]
    });
    for path in ["/v1/catalog/service/db?near=_agent", "/v1/catalog/service/db?near=S1"] {
        assert_eq!(
            names(&agent.get(path).expect("an answer"), "Node"),
            ["near", "middle", "far"]
        );
    }
    let health = agent.get("/v1/health/service/db?near=far").expect("an answer");
    let health: Vec<&Value> = health
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| &entry["Node"]["Node"])
        .collect();
    assert_eq!(health, ["far", "middle", "near"]);
    let unknown = agent.get("/v1/catalog/service/db?near=nobody").expect("an answer");
    assert_eq!(names(&unknown, "Node"), ["far", "middle", "near"]);

    agent
        .cli(&["rtt", "near", "s1"])
        .check(0, "Estimated near <-> s1 rtt: 1.020 ms (using LAN coordinates)\n", "");
    agent
        .cli(&["rtt", "near", "nope"])
        .check(1, "", "Could not find a coordinate for node \"nope\"\n");
    assert_eq!(
        agent
            .http("GET", "/v1/coordinate/node/nope", "")
            .expect("an answer")
            .status,
        404
    );
    let wrong = json!({"Node": "near", "Coord": {"Vec": [0, 0], "Error": 0.5}});
    let wrong = agent.put("/v1/coordinate/update", &wrong);
    assert_eq!((wrong.status, wrong.body.as_str()), (500, "incompatible coordinate"));
}
