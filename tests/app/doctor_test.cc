// What `tandem doctor` says of made-up facts, and the exchange between two doctors on this machine.
#include "app/doctor_checks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "app/devices.h"
#include "app/doctor_peer.h"
#include "app/doctor_probe.h"

namespace tandem::app {
namespace {

MachineFacts good_machine() {
  MachineFacts facts;
  facts.shm_bytes = uint64_t(8) << 30;
  facts.memlock_bytes = uint64_t(8) << 20;
  facts.open_files = 65536;
  facts.overcommit = 0;
  facts.huge_pages = "madvise";
  return facts;
}

const Finding& named(const std::vector<Finding>& findings, const std::string& name) {
  for (const Finding& finding : findings) {
    if (finding.name == name) return finding;
  }
  static const Finding none;
  ADD_FAILURE() << "no finding " << name;
  return none;
}

TEST(CheckMachine, AGoodMachineIsFine) {
  for (const Finding& finding : check_machine(good_machine())) {
    EXPECT_EQ(finding.verdict, Verdict::kOk) << finding.name;
    EXPECT_EQ(finding.fix, "") << finding.name;
  }
}

TEST(CheckMachine, LimitsThatAreTooLowAreNamedWithTheirFix) {
  MachineFacts facts = good_machine();
  facts.shm_bytes = uint64_t(64) << 20;
  facts.open_files = 1024;
  facts.overcommit = 2;
  facts.huge_pages = "never";
  const auto findings = check_machine(facts);
  for (const char* name : {"/dev/shm", "open files", "overcommit", "huge pages"}) {
    EXPECT_EQ(named(findings, name).verdict, Verdict::kWarn) << name;
    EXPECT_NE(named(findings, name).fix, "") << name;
  }
  EXPECT_EQ(named(findings, "/dev/shm").found, "64 MiB");
  facts.open_files = 128;
  EXPECT_EQ(named(check_machine(facts), "open files").verdict, Verdict::kFail);
}

TEST(CheckMachine, LockedMemoryMattersWhereThereIsRdma) {
  MachineFacts facts = good_machine();
  facts.rdma_nics = {"mlx5_0"};
  EXPECT_EQ(named(check_machine(facts), "locked memory").verdict, Verdict::kWarn);
  facts.memlock_bytes = UINT64_MAX;
  EXPECT_EQ(named(check_machine(facts), "locked memory").verdict, Verdict::kOk);
}

TEST(CheckPort, ATakenPortFailsWithTheFlagToChange) {
  EXPECT_EQ(check_port({"HTTP", "--port", "127.0.0.1", 30000, Ok{}}).verdict, Verdict::kOk);
  const Finding taken = check_port({"HTTP", "--port", "127.0.0.1", 30000, exhausted("Address already in use")});
  EXPECT_EQ(taken.verdict, Verdict::kFail);
  EXPECT_NE(taken.fix.find("--port"), std::string::npos);
}

TEST(CheckRoute, ASmallMtuWarnsAndNoRouteFails) {
  RouteFact fact{"node7", std::string("10.0.0.1"), "eth0", 9000};
  EXPECT_EQ(check_route(fact).verdict, Verdict::kOk);
  fact.mtu = 1400;
  EXPECT_EQ(check_route(fact).verdict, Verdict::kWarn);
  fact.own_address = not_found("host 'node7' does not resolve");
  EXPECT_EQ(check_route(fact).verdict, Verdict::kFail);
}

TEST(CheckClock, CountsOnlyWhatIsCertain) {
  EXPECT_EQ(check_clock("x", 0.9, 1.0).verdict, Verdict::kOk);
  EXPECT_EQ(check_clock("x", 0.05, 0).verdict, Verdict::kOk);
  EXPECT_EQ(check_clock("x", -0.3, 0.001).verdict, Verdict::kWarn);
  EXPECT_EQ(check_clock("x", 3600, 1.0).verdict, Verdict::kFail);
}

TEST(CheckPeer, ComparesVersionClockAndMtu) {
  PeerFact fact{"10.0.0.2:4000", "1.0", 40, 1200, 0.0001, 9000, 9000};
  for (const Finding& finding : check_peer(fact.address, fact, "1.0")) {
    EXPECT_EQ(finding.verdict, Verdict::kOk) << finding.name;
  }
  fact.mtu = 1500;
  fact.skew_s = 2;
  const auto findings = check_peer(fact.address, fact, "1.1");
  EXPECT_EQ(named(findings, "peer 10.0.0.2:4000").verdict, Verdict::kFail);
  EXPECT_EQ(named(findings, "MTU 10.0.0.2:4000").verdict, Verdict::kWarn);
  EXPECT_EQ(named(findings, "clock 10.0.0.2:4000").verdict, Verdict::kWarn);
  EXPECT_EQ(check_peer(fact.address, peer_lost("Connection refused"), "1.0")[0].verdict, Verdict::kFail);
}

TEST(CheckInstance, HealthOtherThan200Fails) {
  EXPECT_EQ(check_instance("http://x:1", InstanceFact{200, 0.2})[1].verdict, Verdict::kOk);
  EXPECT_EQ(check_instance("http://x:1", InstanceFact{503, std::nullopt})[0].verdict, Verdict::kFail);
  EXPECT_EQ(check_instance("http://x:1", timed_out("no answer"))[0].verdict, Verdict::kFail);
}

TEST(Findings, AreATableAndJson) {
  const std::vector<Finding> findings = {{"flags", Verdict::kOk, "0 warnings", ""},
                                         {"port HTTP", Verdict::kFail, "taken", "give another --port"}};
  EXPECT_TRUE(any_failed(findings));
  EXPECT_EQ(findings_table(findings),
            "ok    flags      0 warnings\nfail  port HTTP  taken\n                 fix: give another --port\n"
            "1 ok, 0 warn, 1 fail\n");
  EXPECT_EQ(json::dump(findings_json(findings)),
            R"({"ok":false,"checks":[{"name":"flags","verdict":"ok","found":"0 warnings","fix":""},)"
            R"({"name":"port HTTP","verdict":"fail","found":"taken","fix":"give another --port"}]})");
}

TEST(HttpDate, IsReadAsUtc) {
  EXPECT_EQ(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), 784111777);
  for (const char* wrong : {"", "yesterday", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49:37 GMT+1"}) {
    EXPECT_FALSE(parse_http_date(wrong)) << wrong;
  }
}

TEST(Devices, AreAListAMapOrAFile) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(*parse_devices("mlx5_0, mlx5_1,mlx5_0"), (Names{"mlx5_0", "mlx5_1"}));
  EXPECT_EQ(*parse_devices(R"({"0": "mlx5_0,mlx5_1", "1": "mlx5_1,mlx5_3"})"), (Names{"mlx5_0", "mlx5_1", "mlx5_3"}));
  for (const char* wrong : {"", "a,", "{}", "{", R"({"0": 1})", R"({"0": ""})", "/nowhere/map.json"}) {
    EXPECT_FALSE(parse_devices(wrong)) << wrong;
  }
}

struct ListeningDoctor {
  explicit ListeningDoctor(const std::string& version) {
    thread = std::jthread([this, version] {
      const PeerOptions options{version, {}, "", 1500};
      EXPECT_TRUE(listen_for_peers(
          "127.0.0.1", 0, options, [this](uint16_t bound) { port.set_value(bound); }, [this] { return stop.load(); }));
    });
  }
  ~ListeningDoctor() { stop = true; }
  std::promise<uint16_t> port;
  std::atomic<bool> stop{false};
  std::jthread thread;
};

TEST(DoctorPeer, MeasuresReachSpeedAndClock) {
  ListeningDoctor doctor("1.2.3");
  const PeerOptions options{"1.2.3", {}, "", 9000};
  const auto fact = call_peer("127.0.0.1", doctor.port.get_future().get(), options, std::chrono::seconds(60));
  ASSERT_TRUE(fact) << fact.error().message;
  EXPECT_EQ(fact->version, "1.2.3");
  EXPECT_EQ(fact->mtu, 1500);
  EXPECT_EQ(fact->own_mtu, 9000);
  EXPECT_GT(fact->round_trip_us, 0);
  EXPECT_GT(fact->bandwidth_mb_per_s, 0);
  EXPECT_LE(std::abs(fact->skew_s), fact->round_trip_us / 1e6);
}

TEST(DoctorPeer, AClosedPortIsAnError) {
  EXPECT_FALSE(call_peer("127.0.0.1", 1, PeerOptions(), std::chrono::seconds(10)));
}

TEST(DoctorPeer, ADeviceThatIsNotThereIsAnErrorThatNamesWhatIs) {
  const PeerOptions options{"1", {"nonexistent0"}, "", 0};
  const auto fact = call_peer("127.0.0.1", 1, options, std::chrono::seconds(10));
  ASSERT_FALSE(fact);
  EXPECT_NE(fact.error().message.find("'nonexistent0' is not one that UCX can use here; there are: tcp/"),
            std::string::npos)
      << fact.error().message;
}

}  // namespace
}  // namespace tandem::app
