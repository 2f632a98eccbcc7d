// A js-libp2p circuit relay over QUIC and TCP, since Lattica ships none: listens at the given multiaddrs and prints who it is.

import '../../interop/with_resolvers.mjs'
import { createLibp2p } from 'libp2p'
import { tcp } from '@libp2p/tcp'
import { quic } from '@chainsafe/libp2p-quic'
import { noise } from '@libp2p/noise'
import { yamux } from '@libp2p/yamux'
import { identify } from '@libp2p/identify'
import { ping } from '@libp2p/ping'
import { circuitRelayServer } from '@libp2p/circuit-relay-v2'

const addresses = process.argv.slice(2)
const node = await createLibp2p({
  addresses: { listen: addresses, announce: addresses },
  transports: [quic(), tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  connectionGater: { denyDialMultiaddr: () => true },
  services: {
    identify: identify(),
    ping: ping(),
    relay: circuitRelayServer({ reservations: { applyDefaultLimit: false, maxReservations: 64 } })
  }
})
// Lattica leaves every peer that says another protocol version than its own.
node.services.identify.host.protocolVersion = '/ipfs/kad/1.0.0'
console.log(JSON.stringify({ peer: node.peerId.toString() }))
